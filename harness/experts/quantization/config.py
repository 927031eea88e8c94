"""What asks for it: a quantisation config for ``from_pretrained``, like transformers' BitsAndBytesConfig, that means the fused experts too."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.quantizers.auto import register_quantization_config

from harness.experts.quantization.scheme import Code, Scheme

METHOD_4BIT = "bitsandbytes_experts_4bit"
METHOD_8BIT = "bitsandbytes_experts_8bit"


@register_quantization_config(METHOD_4BIT)
@register_quantization_config(METHOD_8BIT)
class ExpertQuantizationConfig(BitsAndBytesConfig):  # type: ignore[misc]
    """Quantise Linears as bitsandbytes does, and fused experts with the same code, as each is loaded.

    Args:
        code: ``nf4``, ``fp4`` or ``int8``.
        double_quant: quantise the scales of 4 bits again, which saves 0.4 bits a weight.
        compute_dtype: what 4-bit Linears multiply in; bfloat16 as is usual, whatever the model's dtype. Experts are decoded to the model's dtype.
        skip_modules: Linears to leave as they are, besides the output embedding, routers and gates with one output.

    Raises:
        UnknownSchemeError: no such code, or double quantisation of int8.
    """

    def __init__(
        self,
        code: Code = "nf4",
        *,
        double_quant: bool | None = None,
        compute_dtype: torch.dtype = torch.bfloat16,
        skip_modules: list[str] | None = None,
    ) -> None:
        self.experts = Scheme(code, double_quant=code != "int8" if double_quant is None else double_quant)
        four = code != "int8"
        super().__init__(
            load_in_4bit=four,
            load_in_8bit=not four,
            bnb_4bit_quant_type=code if four else "nf4",
            bnb_4bit_use_double_quant=self.experts.double_quant,
            bnb_4bit_compute_dtype=compute_dtype,
            llm_int8_skip_modules=skip_modules,
        )
        self.quant_method = METHOD_4BIT if four else METHOD_8BIT

    def to_dict(self) -> dict[str, Any]:
        """Return what a config.json can hold."""
        values: dict[str, Any] = super().to_dict()
        scheme = values.pop("experts", self.experts)
        return {**values, "experts": str(scheme)}
