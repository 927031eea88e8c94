"""Whether a LoRA can be trained on quantised experts, said before anything is loaded.

PEFT says so only after loading, and of some things not at all.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from harness.experts.errors import QloraConfigError
from harness.experts.quantization.scheme import Scheme

NOT_FOR_PARAMETERS = {
    "lora_dropout": "dropout cannot be taken out of a delta that is added to a parameter; set lora_dropout=0.0",
    "use_dora": "DoRA needs the norms of a weight that is a Linear's",
    "lora_bias": "a parameter has no output to add a bias to",
    "fan_in_fan_out": "a parameter says itself how it is stored",
}
"""Settings of ``peft.LoraConfig`` that its ``ParamWrapper`` refuses (0.18.1 to 0.21.2), and why."""
NOT_FOR_CODES = ("use_qalora", "velora_config", "kasa_config", "loftq_config", "corda_config", "lora_ga_config")
"""Settings that need, or change, the numbers of a Linear's weight."""
INITIALISES = ("gaussian", "eva")
"""Values of ``init_lora_weights``, besides True and False, that leave the base alone and need nothing of it.

``pissa``, ``olora``, ``corda``, ``loftq`` and ``lora_ga`` take a part of the base away. Codes cannot follow that, and a
merge into the original would not. ``orthogonal`` and ``mica`` read the base's numbers.
"""
REWRITTEN = ("gate_proj", "up_proj", "down_proj")
"""Names that PEFT 0.19 and later, on transformers 5, take for the fused experts'.

Source: ``peft.utils.transformers_weight_conversion``.
"""


def check_qlora(quantization: Any, adapter: Any) -> None:
    """Refuse a configuration that cannot be trained, or would train something else than it says.

    Args:
        quantization: the ``ExpertQuantizationConfig`` that the model will be loaded with.
        adapter: the ``peft.LoraConfig`` that will be attached; None where there is none.

    Raises:
        QloraConfigError: says which setting, why, and what to do.
    """
    if not isinstance(getattr(quantization, "experts", None), Scheme):
        raise QloraConfigError(
            f"{type(quantization).__name__} does not quantise experts; use ExpertQuantizationConfig."
        )
    if adapter is None:
        raise QloraConfigError(
            "Quantised weights cannot be trained themselves: give a LoRA, or load without a quantization_config."
        )
    kind = getattr(adapter, "peft_type", None)
    if kind != "LORA":  # an enumeration of strings
        raise QloraConfigError(f"An adapter of type {kind} is not known to work on quantised experts; LORA is.")
    initialisation = getattr(adapter, "init_lora_weights", True)
    if isinstance(initialisation, str) and initialisation.lower() not in INITIALISES:
        raise QloraConfigError(
            f"init_lora_weights={initialisation!r} reads or changes the numbers of the base, and the base is codes; "
            "use True or 'gaussian'."
        )
    for setting in NOT_FOR_CODES:
        if getattr(adapter, setting, None):
            raise QloraConfigError(f"{setting} needs, or changes, the numbers of the base, and the base is codes.")
    _check_modules(getattr(adapter, "target_modules", None), metadata.version("peft"))
    for setting, why in NOT_FOR_PARAMETERS.items():
        if getattr(adapter, "target_parameters", None) and getattr(adapter, setting, None):
            raise QloraConfigError(f"{setting}={getattr(adapter, setting)} does not go with target_parameters: {why}.")


def _check_modules(modules: Any, version: str) -> None:
    """Refuse ``target_modules`` that the installed PEFT reads as something else."""
    release = tuple(int(part) for part in version.split(".")[:2])
    if isinstance(modules, str) and release == (0, 19):
        raise QloraConfigError(
            f"PEFT {version} splits target_modules={modules!r} into its letters; give a list of names, or use PEFT "
            "0.20 or later."
        )
    lost = (
        [name for name in modules or () if name.rpartition(".")[2] in REWRITTEN] if not isinstance(modules, str) else []
    )
    if lost and release >= (0, 19):
        raise QloraConfigError(
            f"PEFT {version} takes {min(lost)!r} in target_modules for the fused experts', so that shared experts and "
            "dense MLPs of that name get no LoRA, without a word. Take it out, and name the experts in "
            "target_parameters."
        )
