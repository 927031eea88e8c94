"""A fused experts parameter as codes and scales.

It is packed expert by expert, so that no more than one expert is ever decoded for packing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from harness.experts.errors import NotFiniteError
from harness.experts.quantization.codec import SHARED, check_decode, check_packable, decode, encode
from harness.experts.quantization.scheme import Scheme


@dataclass(frozen=True, eq=False)
class PackedExperts:
    """The codes of (num_experts, out, in) weights; immutable, so that aliases may share it.

    ``parts``: tensors by name, (num_experts, …) each, and tables that all experts share; see ``codec``.
    """

    scheme: Scheme
    shape: tuple[int, int, int]
    parts: dict[str, torch.Tensor]

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.parts["codes"].device

    @property
    def nbytes(self) -> int:
        """Bytes that the codes, scales and tables take."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())

    def expert(self, number: int, dtype: torch.dtype) -> torch.Tensor:
        """Return one expert's weight, (out, in) in ``dtype``."""
        parts = {name: part if name in SHARED else part[number] for name, part in self.parts.items()}
        return decode(self.scheme, parts, self.shape[1:], dtype)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return all of it, (num_experts, out, in) in ``dtype``."""
        weights = torch.empty(self.shape, dtype=dtype, device=self.device)
        for number in range(self.shape[0]):
            weights[number] = self.expert(number, dtype)
        return weights

    def check(self, dtype: torch.dtype) -> None:
        """Check what the kernels make of the first expert in a dtype.

        Raises:
            WrongDecodeError: see ``codec``.
        """
        parts = {name: part if name in SHARED else part[0] for name, part in self.parts.items()}
        check_decode(self.scheme, parts, self.shape[1:], dtype, "experts[0]")

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PackedExperts:
        """Return it with every part changed: moved, or copied."""
        return replace(self, parts={name: change(part) for name, part in self.parts.items()})


def pack(weights: torch.Tensor, scheme: Scheme, name: str) -> PackedExperts:
    """Quantise ``weights``, (num_experts, out, in) floating point, and check what the kernels make of every expert.

    Args:
        weights: anything with ``shape`` and ``[e]``. It is read one expert at a time.
        scheme: the code.
        name: what errors call it.

    Raises:
        NotFiniteError: some weight is NaN or infinite.
        UnpackableShapeError, WrongDecodeError: see ``codec``.
    """
    count, out, inward = weights.shape
    check_packable(scheme, (count, out, inward), name)
    parts: dict[str, torch.Tensor] = {}
    for number in range(count):
        plain = weights[number]
        if not bool(torch.isfinite(plain).all()):
            raise NotFiniteError(f"{name}[{number}] holds NaN or infinity.")
        expert = encode(scheme, plain)
        check_decode(scheme, expert, (out, inward), weights.dtype, f"{name}[{number}]")
        if not parts:
            parts = {
                key: part if key in SHARED else part.new_empty((count, *part.shape)) for key, part in expert.items()
            }
        for key in expert.keys() - SHARED:
            parts[key][number] = expert[key]
    return PackedExperts(scheme, (count, out, inward), parts)
