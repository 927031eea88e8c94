"""How far what moved in a merge is what a delta would have moved.

Measured are the angle between the two, the factor on the delta, and that on the base.
"""

from __future__ import annotations

import torch

CORRECTIONS = 6
"""Steps in which a fitted scale is corrected for rounding."""


def alignment(base: torch.Tensor, merged: torch.Tensor, delta: torch.Tensor) -> float:
    """Return the cosine between what moved and what this delta would have moved, both rounded.

    0 where either is nothing.
    """
    kept = base.to(merged.dtype).float()
    moved = (merged.float() - kept).double().flatten()
    expected = ((delta + base).to(merged.dtype).float() - kept).double().flatten()
    size = float(moved.norm() * expected.norm())
    return float(moved @ expected) / size if size and torch.isfinite(torch.tensor(size)) else 0.0


def fitted_scale(base: torch.Tensor, merged: torch.Tensor, delta: torch.Tensor) -> float:
    """Return the least-squares factor of ``delta`` in ``merged - base``.

    Rounding biases the plain quotient where deltas are below the dtype's spacing, so it is corrected until the rounded
    prediction has the same projection.
    """
    kept = base.to(merged.dtype).float()
    wide = delta.double()
    moved = float(((merged.float() - kept).double() * wide).sum())
    scale = moved / max(float((wide * wide).sum()), 1e-300)
    for _ in range(CORRECTIONS):
        reached = float((((delta * scale + base).to(merged.dtype).float() - kept).double() * wide).sum())
        if reached == 0 or moved == 0:
            return scale
        scale *= moved / reached
    return scale


def fitted_base_scale(base: torch.Tensor, merged: torch.Tensor, delta: torch.Tensor) -> float:
    """Return the least-squares factor of ``base`` in ``merged - delta``.

    It is corrected for rounding as ``fitted_scale`` is.
    """
    wide, right = base.double(), (delta + base).double()
    excess = float(((merged.double() - right) * wide).sum())
    above = excess / max(float((wide * wide).sum()), 1e-300)
    for _ in range(CORRECTIONS):
        scaled = (wide * (1 + above) + delta).to(merged.dtype).double()
        reached = float(((scaled - right) * wide).sum())
        if reached == 0 or excess == 0:
            break
        above *= excess / reached
    return 1 + above
