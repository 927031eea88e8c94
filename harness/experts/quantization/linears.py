"""What a Linear that bitsandbytes packed means, by the definition of its code and not by its kernels."""

from __future__ import annotations

from typing import Any

import torch

from harness.experts.errors import UnsupportedStackError
from harness.experts.quantization.codec import NESTED_BLOCKSIZE, Parts, check_decode, decode_by_definition
from harness.experts.quantization.scheme import BLOCKSIZE, Scheme


def packed_linears(model: torch.nn.Module) -> dict[str, Any]:
    """Return the Linears of a model that bitsandbytes made, by name, packed or not."""
    import bitsandbytes  # noqa: PLC0415 - only who quantises needs it

    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def decode_linear(module: Any) -> torch.Tensor:
    """Return the weight, (out, in), of a bitsandbytes ``Linear4bit`` or ``Linear8bitLt``.

    4 bits: in the dtype it was packed from. 8 bits: in float32.

    Raises:
        UnsupportedStackError: it is packed in a way that is not known here.
    """
    scheme, parts, shape, dtype = _read(module)
    return decode_by_definition(scheme, parts, shape).to(dtype)


def scheme_of(module: Any) -> Scheme:
    """Return how a bitsandbytes ``Linear4bit`` or ``Linear8bitLt`` is packed.

    Raises:
        UnsupportedStackError: see ``decode_linear``.
    """
    return _read(module)[0]


def check_linears(model: torch.nn.Module) -> None:
    """Decode every Linear that bitsandbytes packed by its kernels and by definition, and compare.

    Raises:
        WrongDecodeError: the kernels return other values than the codes mean.
        UnsupportedStackError: see ``decode_linear``.
    """
    for name, module in packed_linears(model).items():
        scheme, parts, shape, dtype = _read(module)
        check_decode(scheme, parts, shape, dtype, name)


def _read(module: Any) -> tuple[Scheme, Parts, tuple[int, int], torch.dtype]:
    """Return how a Linear is packed, its codes and tables, and the shape and dtype that they mean."""
    weight = module.weight
    if weight.dtype == torch.int8:
        scales = weight.SCB if weight.SCB is not None else module.state.SCB
        return Scheme("int8"), {"codes": weight.data, "scales": scales}, tuple(weight.shape), torch.float32
    state = getattr(weight, "quant_state", None)
    if state is None or state.blocksize != BLOCKSIZE or weight.dtype != torch.uint8:
        raise UnsupportedStackError(f"{type(module).__name__} holds a weight that is packed in no known way.")
    parts = {"codes": weight.data.reshape(-1), "absmax": state.absmax, "map": state.code}
    if state.nested:
        if state.state2.blocksize != NESTED_BLOCKSIZE:
            raise UnsupportedStackError(f"{type(module).__name__} has nested blocks of {state.state2.blocksize}.")
        parts |= {
            "nested_absmax": state.state2.absmax,
            "nested_map": state.state2.code,
            "nested_offset": state.offset,
        }
    scheme = Scheme(state.quant_type, double_quant=bool(state.nested))
    return scheme, parts, tuple(state.shape), state.dtype
