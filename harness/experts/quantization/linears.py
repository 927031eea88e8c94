"""What a Linear that bitsandbytes packed means, by the definition of its code and not by its kernels."""

from __future__ import annotations

from typing import Any

import torch

from harness.experts.errors import UnsupportedStackError
from harness.experts.quantization.codec import NESTED_BLOCKSIZE, decode_by_definition
from harness.experts.quantization.scheme import BLOCKSIZE, Scheme


def decode_linear(module: Any) -> torch.Tensor:
    """Return the weight of a bitsandbytes ``Linear4bit`` or ``Linear8bitLt``, (out, in) in the dtype it was packed from (8 bits: float32).

    Raises:
        UnsupportedStackError: it is packed in a way that is not known here.
    """
    weight = module.weight
    if weight.dtype == torch.int8:
        scales = weight.SCB if weight.SCB is not None else module.state.SCB
        return decode_by_definition(Scheme("int8"), {"codes": weight.data, "scales": scales}, tuple(weight.shape))
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
    return decode_by_definition(scheme, parts, tuple(state.shape)).to(state.dtype)
