"""Which parameters of a model are fused experts.

They are (num_experts, rows, columns), directly on a module that says how many experts it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

FUSED = 3
"""Dimensions of a fused experts parameter."""


def is_fused_experts(module: torch.nn.Module, leaf: str) -> bool:
    """Say whether ``module.leaf`` is a fused experts parameter."""
    weights = dict(module.named_parameters(recurse=False)).get(leaf)
    return (
        weights is not None
        and weights.ndim == FUSED
        and getattr(module, "num_experts", None) == weights.shape[0]
        and weights.is_floating_point()
    )


def fused_experts(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield every fused experts parameter of ``model`` with its name."""
    for name, module in model.named_modules():
        for leaf, weights in module.named_parameters(recurse=False):
            if is_fused_experts(module, leaf):
                yield f"{name}.{leaf}" if name else leaf, weights
