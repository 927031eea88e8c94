"""Fused experts stay in full, because a configuration for Linears means parameters of nothing else. Nothing says so."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Load with the configuration that transformers itself has."""
    from transformers import BitsAndBytesConfig

    from harness.experts.quantization import quantizer

    def make(_original: Any) -> Any:
        def config(code: str, *, double_quant: bool, compute_dtype: Any) -> Any:
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=code,
                bnb_4bit_use_double_quant=double_quant,
                bnb_4bit_compute_dtype=compute_dtype,
            )

        return config

    replace(patches, quantizer, "ExpertQuantizationConfig", make)


FAULT: Fault = LibraryFault(
    breaks="leaves fused experts unquantised and says nothing",
    noticed_by=frozenset({"load/quantized", "load/census"}),
    reference="bitsandbytes#1849",
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
