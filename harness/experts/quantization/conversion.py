"""The operation that transformers calls for each parameter as its values come.

It packs fused experts, and looks at what goes into Linears.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.quantizers_utils import get_module_from_name

from harness.experts.errors import ExpertsError, NotFiniteError, ShapeMismatchError, WrongDecodeError
from harness.experts.fused import is_fused_experts
from harness.experts.quantization.config import ExpertQuantizationConfig
from harness.experts.quantization.packed import pack
from harness.experts.quantization.tensor import wrap


class QuantizeExperts(ConversionOps):  # type: ignore[misc]
    """Quantises what is a fused experts parameter; leaves the rest to the operation for Linears.

    What is wrong is kept in ``wrong``. The quantiser raises it once all is loaded. Raised here it would drown in
    transformers' report of what could not be converted.
    """

    def __init__(self, config: ExpertQuantizationConfig, linears: ConversionOps, wrong: list[ExpertsError]) -> None:
        self.config = config
        self.linears = linears
        self.wrong = wrong

    def convert(
        self, input_dict: dict[str, Any], model: torch.nn.Module | None = None, **options: Any
    ) -> dict[str, torch.Tensor]:
        """Return the parameters of ``input_dict``, packed."""
        converted: dict[str, torch.Tensor] = {}
        for name, given in input_dict.items():
            module, leaf = get_module_from_name(model, name)
            values = given[0] if isinstance(given, list) else given
            try:
                _check_shape(values, getattr(module, leaf), name)
                if is_fused_experts(module, leaf):
                    values = wrap(pack(values, self.config.experts, name), values.dtype)
                else:
                    _check_finite(values, name)
            except (WrongDecodeError, NotFiniteError, ShapeMismatchError) as error:
                self.wrong.append(error)
                converted[name] = torch.nn.Parameter(values, requires_grad=False)
                continue
            if is_fused_experts(module, leaf):
                converted[name] = torch.nn.Parameter(values, requires_grad=False)
            else:
                converted |= self.linears.convert({name: given}, model=model, **options)
        return converted


def _check_shape(values: torch.Tensor, wanted: torch.Tensor, name: str) -> None:
    """Hold values against the model's own parameter; transformers does so for all but quantised ones.

    A layer that lacks an expert on disk would be stacked without it, and every later one would stand a place too low.
    """
    if values.shape != wanted.shape:
        raise ShapeMismatchError(
            f"{name} is {tuple(values.shape)} in the checkpoint and {tuple(wanted.shape)} in the model: config.json "
            "means another checkpoint, or experts are missing in this one."
        )


def _check_finite(values: torch.Tensor, name: str) -> None:
    """Refuse a Linear's weights that no code can mean; experts are looked at one by one as they are packed."""
    if not bool(torch.isfinite(values).all()):
        raise NotFiniteError(f"{name} holds NaN or infinity.")
