"""Whether a LoRA is where it was asked for, said before training.

PEFT says nothing about a name that matches nothing, as long as another name matches something.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.experts.errors import QloraConfigError
from harness.experts.quantization.report import is_quantized


def check_attached(peft_model: Any) -> dict[str, int]:
    """Return how many LoRAs each name of the active adapter's targets got.

    Args:
        peft_model: what ``get_peft_model`` returned.

    Raises:
        QloraConfigError: a name in ``target_modules`` or ``target_parameters`` matched nothing in the model. Or a
            module that ``modules_to_save`` names holds packed weights, which cannot be trained.
    """
    adapter = peft_model.active_adapter
    config = peft_model.peft_config[adapter]
    modules = config.target_modules
    asked = {*(() if isinstance(modules, str) else modules or ()), *(getattr(config, "target_parameters", None) or ())}
    found = list(_attached(peft_model, adapter))
    # A Linear's weight, named as a parameter, gets the LoRA of its Linear.
    counts = {
        name: sum(f".{path}".endswith(f".{name.removesuffix('.weight')}") for path in found) for name in sorted(asked)
    }
    missed = [name for name, count in counts.items() if not count]
    if missed:
        raise QloraConfigError(
            f"{missed[0]!r} matches nothing in the model, so it gets no LoRA; {len(found)} others got one."
        )
    _check_saved(peft_model)
    return counts


def _attached(peft_model: Any, adapter: str) -> Iterator[str]:
    """Yield the path of everything that has a LoRA of this adapter: a Linear, or a parameter."""
    for name, module in peft_model.get_base_model().named_modules():
        if adapter not in getattr(module, "lora_A", ()):
            continue
        path = name.replace(".base_layer", "")  # wrappers of several parameters nest
        parameter = getattr(module, "parameter_name", None)
        yield path if parameter in (None, "weight") else f"{path}.{parameter}"


def _check_saved(peft_model: Any) -> None:
    for name, module in peft_model.get_base_model().named_modules():
        for copied in getattr(module, "modules_to_save", {}).values() if hasattr(module, "original_module") else ():
            packed = [leaf for leaf, weights in copied.named_parameters() if is_quantized(weights)]
            if packed:
                raise QloraConfigError(
                    f"modules_to_save names {name}, whose {packed[0]} is packed and cannot be trained; load with "
                    "skip_modules, or leave it out."
                )
