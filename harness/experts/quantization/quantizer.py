"""What ``from_pretrained`` calls: transformers' quantisers of Linears, which here take fused experts too.

They take one parameter after the other, as it is loaded. They are registered by the hook that transformers has for it
(``register_quantizer``; 5.0 to 5.23 alike). An operation is made for each parameter before its values are there. It
converts them once the experts of a layer are stacked.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils import logging

from harness.experts.errors import ExpertsError, LeftUnquantizedError
from harness.experts.fused import FUSED, fused_experts, is_fused_experts
from harness.experts.quantization.codec import check_backend, check_packable
from harness.experts.quantization.config import METHOD_4BIT, METHOD_8BIT, ExpertQuantizationConfig
from harness.experts.quantization.conversion import QuantizeExperts
from harness.experts.quantization.linears import check_linears, packed_linears
from harness.experts.quantization.report import is_quantized

logger = logging.get_logger(__name__)

NO_ROUTER = re.compile("attn|attention|expert")
SMALLEST_OUTPUT = 2
"""A gate with one output is not worth 4 bits, and bitsandbytes' CPU kernels cannot pack it."""


class _FusedExperts:
    """What both quantisers add; a mixin, before one of transformers' own."""

    quantization_config: ExpertQuantizationConfig

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._wrong: list[ExpertsError] = []

    def param_needs_quantization(self, model: Any, param_name: str, **options: Any) -> bool:
        """Say whether a parameter is quantised: of a Linear, or of fused experts."""
        module, leaf = get_module_from_name(model, param_name)
        return is_fused_experts(module, leaf) or super().param_needs_quantization(model, param_name, **options)  # type: ignore[misc]

    def get_quantize_ops(self) -> ConversionOps:
        """Return the operation for one parameter."""
        return QuantizeExperts(self.quantization_config, super().get_quantize_ops(), self._wrong)  # type: ignore[misc]

    def get_modules_to_not_convert(
        self,
        model: Any,
        skip_modules: list[str] | None = None,
        keep_in_fp32_modules: list[str] | None = None,
        add_default_skips: bool = True,
    ) -> list[str]:
        """Return patterns of Linears that stay: transformers' own, those that were given, gates and routers."""
        kept: list[str] = super().get_modules_to_not_convert(  # type: ignore[misc]
            model, skip_modules, keep_in_fp32_modules, add_default_skips
        )
        return [*kept, *(f"{re.escape(name)}$" for name in gates(model))]

    def _process_model_before_weight_loading(self, model: Any, *args: Any, **options: Any) -> Any:
        scheme = self.quantization_config.experts
        for name, weights in fused_experts(model):
            check_packable(scheme, tuple(weights.shape), name)
        for device in _devices(options.get("device_map")):
            check_backend(scheme, device, model.dtype)
        return super()._process_model_before_weight_loading(model, *args, **options)  # type: ignore[misc]

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
        if self._wrong:
            raise self._wrong[0]
        if not any(True for _ in fused_experts(model)):
            raise LeftUnquantizedError(
                f"{type(model).__name__} is not quantised: no fused experts were found in it. It has none, or keeps "
                "them in a way that is not known here."
            )
        left = left_unquantized(model)
        if left:
            raise LeftUnquantizedError(
                f"{type(model).__name__} is not quantised: {len(left)} of its parameters, {left[0]} first, stayed as "
                "they are. The checkpoint has no values for them, or the model keeps experts in a way that is not "
                "known here."
            )
        check_linears(model)
        return super()._process_model_after_weight_loading(model, **options)  # type: ignore[misc]

    def _dequantize(self, model: Any, *args: Any, **options: Any) -> Any:
        for name, weights in fused_experts(model):
            module, leaf = get_module_from_name(model, name)
            setattr(module, leaf, torch.nn.Parameter(weights.dequantize(), requires_grad=False))
        return super()._dequantize(model, *args, **options)  # type: ignore[misc]

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Say no: adapters and merged checkpoints are saved, but not these codes.

        transformers then says to look for a warning.
        """
        logger.warning(
            "Quantised experts cannot be saved. Save the adapter, and merge it into the original checkpoint (harness "
            "merge); or call model.dequantize() first."
        )
        return False


def _devices(device_map: Any) -> list[Any]:
    """Return where a device_map puts parameters; ``auto`` and its like are not worked out yet."""
    if isinstance(device_map, dict):
        return list(dict.fromkeys(device_map.values()))
    return ["cuda" if torch.cuda.is_available() and device_map is not None else "cpu"]


def gates(model: Any) -> list[str]:
    """Return the names of Linears with a single output, and of routers.

    A router is a Linear beside fused experts, with an output for each expert. It is part of no attention and no expert.
    """
    counts = {name.rpartition(".")[0].rpartition(".")[0]: weights.shape[0] for name, weights in fused_experts(model)}
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        places = [name.removeprefix(f"{block}.") for block in counts if name.startswith(f"{block}.")]
        beside = any(not NO_ROUTER.search(place) for place in places)
        if module.out_features < SMALLEST_OUTPUT or (beside and module.out_features in counts.values()):
            found.append(name)
    return found


def left_unquantized(model: Any) -> list[str]:
    """Return the parameters that were to be quantised and are not.

    They are those of whatever is called experts, and those of bitsandbytes' Linears.
    """
    experts = [
        name
        for name, weights in model.named_parameters()
        if weights.ndim == FUSED and "expert" in name and not is_quantized(weights)
    ]
    linears = [f"{name}.weight" for name, module in packed_linears(model).items() if not is_quantized(module.weight)]
    return experts + linears


@register_quantizer(METHOD_4BIT)
class Experts4BitQuantizer(_FusedExperts, Bnb4BitHfQuantizer):  # type: ignore[misc]
    """Linears and fused experts in 4 bits."""


@register_quantizer(METHOD_8BIT)
class Experts8BitQuantizer(_FusedExperts, Bnb8BitHfQuantizer):  # type: ignore[misc]
    """Linears and fused experts in 8 bits."""
