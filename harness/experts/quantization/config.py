"""The quantisation config that ``from_pretrained`` is given.

It is like transformers' BitsAndBytesConfig, and means the fused experts too.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.quantizers.auto import register_quantization_config

from harness.experts.errors import QloraConfigError
from harness.experts.quantization.scheme import Code, Scheme

METHOD_4BIT = "bitsandbytes_experts_4bit"
METHOD_8BIT = "bitsandbytes_experts_8bit"
INSTEAD = {
    "load_in_4bit": "code='nf4'",
    "load_in_8bit": "code='int8'",
    "bnb_4bit_quant_type": "code",
    "bnb_4bit_use_double_quant": "double_quant",
    "bnb_4bit_compute_dtype": "compute_dtype",
    "llm_int8_skip_modules": "skip_modules",
}
"""Settings of BitsAndBytesConfig by the names that they have here."""


@register_quantization_config(METHOD_4BIT)
@register_quantization_config(METHOD_8BIT)
class ExpertQuantizationConfig(BitsAndBytesConfig):  # type: ignore[misc]
    """Quantise Linears as bitsandbytes does, and fused experts with the same code, as each is loaded.

    Args:
        code: ``nf4``, ``fp4`` or ``int8``.
        double_quant: quantise the scales of 4 bits again, which saves 0.4 bits a weight.
        compute_dtype: what 4-bit Linears multiply in, a dtype or its name. The usual bfloat16 is the default, whatever
            the model's dtype. Experts are decoded to the model's dtype.
        skip_modules: Linears to leave as they are, besides the output embedding, routers and gates with one output.

    Raises:
        UnknownSchemeError: no such code, or double quantisation of int8.
        QloraConfigError: no such dtype, or a setting of BitsAndBytesConfig that goes by another name here.
    """

    def __init__(
        self,
        code: Code = "nf4",
        *,
        double_quant: bool | None = None,
        compute_dtype: torch.dtype | str = torch.bfloat16,
        skip_modules: list[str] | None = None,
        **others: Any,
    ) -> None:
        if others:
            name = next(iter(others))
            instead = INSTEAD.get(name, "one of code, double_quant, compute_dtype and skip_modules")
            raise QloraConfigError(f"{name} is no setting of ExpertQuantizationConfig; give {instead}.")
        dtype = getattr(torch, compute_dtype, None) if isinstance(compute_dtype, str) else compute_dtype
        if not isinstance(dtype, torch.dtype):
            raise QloraConfigError(f"{compute_dtype!r} is no dtype of torch's; 'bfloat16' is one.")
        self.experts = Scheme(code, double_quant=code != "int8" if double_quant is None else double_quant)
        four = code != "int8"
        super().__init__(
            load_in_4bit=four,
            load_in_8bit=not four,
            bnb_4bit_quant_type=code if four else "nf4",
            bnb_4bit_use_double_quant=self.experts.double_quant,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skip_modules,
        )
        self.quant_method = METHOD_4BIT if four else METHOD_8BIT

    def to_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` and ``from_pretrained`` make the same config of.

        ``load_in_4bit`` is not in it: transformers would make a config of its own.
        """
        return {
            "quant_method": self.quant_method,
            "code": self.experts.code,
            "double_quant": self.experts.double_quant,
            "compute_dtype": str(self.bnb_4bit_compute_dtype).removeprefix("torch."),
            "skip_modules": self.llm_int8_skip_modules,
        }

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **options: Any) -> Any:
        """Return the config that ``to_dict`` describes; ``options`` are transformers', and not used."""
        made = cls(**{name: value for name, value in config_dict.items() if name != "quant_method"})
        return (made, options) if return_unused_kwargs else made

    def to_diff_dict(self) -> dict[str, Any]:
        """Return all of it."""
        return self.to_dict()
