"""Modules that are trained whole (PEFT's ``modules_to_save``): a copy stands in for the original, and is saved.

Their delta is what training has changed of their weight.
"""

from __future__ import annotations

from typing import Any

from harness.worker.stages.biases import SUFFIX
from harness.worker.stages.peft_names import Target
from harness.worker.stages.two_adapters import TRAINED

COPIES = "modules_to_save"
"""What PEFT calls them, as an option and in the names of their parameters."""


def whole_modules(peft_model: Any) -> dict[str, tuple[Target, Any]]:
    """Return every module that is trained whole: its path in a saved adapter → (target, PEFT's wrapper)."""
    return {
        name: ((name.removeprefix("base_model.model."), None), module)
        for name, module in peft_model.named_modules()
        if hasattr(module, "original_module") and TRAINED in getattr(module, COPIES, {})
    }


def trained_weight(wrapper: Any) -> Any:
    """Return the weight that is trained."""
    return getattr(wrapper, COPIES)[TRAINED].weight


def is_trained(name: str) -> bool:
    """Whether a parameter of that name in a PEFT model is a LoRA's, a copy's or the bias beside a LoRA."""
    return ".lora_" in name or f".{COPIES}." in name or name.endswith(SUFFIX)


def saved_copy(name: str) -> str:
    """Return the name under which a copy's parameter is saved."""
    return name.replace(f".{COPIES}.{TRAINED}.", ".")
