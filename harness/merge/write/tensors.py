"""Between bytes and torch: the format's dtypes by torch's, tensors over bytes, bytes of tensors, and whether all is
finite.
"""

from __future__ import annotations

import math

import torch

TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The dtypes that a merge computes with, by the safetensors format's names."""


def tensor_of(data: bytearray, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor over ``data``, which it shares."""
    return torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).reshape(shape)


def bytes_of(tensor: torch.Tensor) -> bytearray:
    """Return the bytes of a tensor."""
    target = bytearray(tensor.numel() * tensor.element_size())
    torch.frombuffer(target, dtype=tensor.dtype).copy_(tensor.reshape(-1))
    return target


def all_finite(tensor: torch.Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity.

    Either makes the sum non-finite, and a sum is several times quicker than looking at each element. Only where the sum
    overflows are the elements looked at.
    """
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())
