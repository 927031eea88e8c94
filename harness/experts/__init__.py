"""MoE expert runtime: clean reference implementations of what makes LoRA on fused experts fast and small.

It is usable on its own. It runs in a stack's environment. It needs torch, and whatever of transformers, peft and
bitsandbytes the caller already uses. Nothing in them is patched. Importing ``ExpertQuantizationConfig`` registers its
quantisers with transformers, by the hooks that transformers has for that.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from harness.experts.attached import check_attached
from harness.experts.errors import (
    ExpertsError,
    IneligibleError,
    LeftUnquantizedError,
    NotFiniteError,
    NothingToEnableError,
    NotWritableError,
    QloraConfigError,
    ShapeMismatchError,
    UnknownSchemeError,
    UnpackableShapeError,
    UnrecognisedLoraError,
    UnsupportedStackError,
    WrongDecodeError,
)
from harness.experts.extraction import ExpertLora, extract_expert_lora
from harness.experts.grouped import BlockReport, GroupedForward, enable_grouped_forward
from harness.experts.qlora import check_qlora
from harness.experts.quantization.linears import decode_linear
from harness.experts.quantization.report import Count, quantization_report
from harness.experts.quantization.tensor import QuantizedExperts

if TYPE_CHECKING:
    from harness.experts.quantization.config import ExpertQuantizationConfig

__all__ = [
    "BlockReport",
    "Count",
    "ExpertLora",
    "ExpertQuantizationConfig",
    "ExpertsError",
    "GroupedForward",
    "IneligibleError",
    "LeftUnquantizedError",
    "NotFiniteError",
    "NotWritableError",
    "NothingToEnableError",
    "QloraConfigError",
    "QuantizedExperts",
    "ShapeMismatchError",
    "UnknownSchemeError",
    "UnpackableShapeError",
    "UnrecognisedLoraError",
    "UnsupportedStackError",
    "WrongDecodeError",
    "check_attached",
    "check_qlora",
    "decode_linear",
    "enable_grouped_forward",
    "extract_expert_lora",
    "quantization_report",
]


def __getattr__(name: str) -> Any:
    """Import what needs transformers 5 only when it is asked for.

    Raises:
        UnsupportedStackError: the installed transformers has no fused experts.
    """
    if name != "ExpertQuantizationConfig":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module("harness.experts.quantization.quantizer").ExpertQuantizationConfig
    except ModuleNotFoundError as error:
        if error.name != "transformers.core_model_loading":  # new in transformers 5
            raise
        raise UnsupportedStackError(
            "ExpertQuantizationConfig needs transformers 5, where experts are fused parameters. Before, they are "
            "Linears, which transformers' own BitsAndBytesConfig quantises; enable_grouped_forward works on both."
        ) from error
