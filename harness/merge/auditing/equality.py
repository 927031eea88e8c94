"""Whether two tensors are the same: in memory, which is quickest, and in value, where 0.0 and -0.0 are one number."""

from __future__ import annotations

import ctypes

import torch

from harness.merge.write.tensors import all_finite

NON_FINITE = "holds NaN or infinity"
_memcmp = ctypes.CDLL(None).memcmp  # several times quicker than comparing elements, and other threads run meanwhile
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memcmp.restype = ctypes.c_int


def identical(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two contiguous tensors of one size hold the same bytes."""
    size = one.numel() * one.element_size()
    assert size == other.numel() * other.element_size()  # noqa: S101 - memcmp would read on
    return not _memcmp(one.data_ptr(), other.data_ptr(), size)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two contiguous tensors (rows, columns) of one dtype hold the same numbers.

    NaN is the same where its bits are. The first row nearly always tells where bytes differ.
    """
    return identical(one, other) or (torch.equal(one[0], other[0]) and torch.equal(one, other))


def broken(merged: torch.Tensor, *right: torch.Tensor) -> bool:
    """Return whether ``merged`` is NaN or infinite where all of ``right`` are finite.

    A number that does not fit its dtype becomes so.
    """
    if all_finite(merged):
        return False
    places = ~torch.isfinite(merged)
    for tensor in right:
        places &= torch.isfinite(tensor)
    return bool(places.any())


def decoded_alike(decoded: torch.Tensor, other: torch.Tensor, load: torch.dtype) -> bool:
    """Return whether ``other`` is what a quantised weight decodes to, in anybody's arithmetic.

    That is what ``decoded`` (float32) rounds to, give or take two roundings in float32, because scales multiply in any
    order. Or it is what ``decoded`` rounds to by way of the dtype that the model is loaded in.
    """
    slack = decoded.abs() * 2.0**-22
    wide = other.float()
    low, high = (decoded - slack).to(other.dtype).float(), (decoded + slack).to(other.dtype).float()
    return bool(((low <= wide) & (wide <= high)).all()) or torch.equal(decoded.to(load).to(other.dtype), other)
