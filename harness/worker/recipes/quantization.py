"""How a QLoRA recipe's base is quantised, for any transformers that the stacks hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What the base is loaded as.

    Attributes:
        code: ``nf4``, ``fp4`` or ``int8``, for Linears and experts alike.
        double_quant: whether the scales of 4 bits are quantised again.
    """

    code: Literal["nf4", "fp4", "int8"]
    double_quant: bool = False
