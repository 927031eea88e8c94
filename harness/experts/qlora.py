"""Whether a LoRA can be trained on quantised experts at all, said before anything is loaded: PEFT says so after, and of some things not at all."""

from __future__ import annotations

from typing import Any

from harness.experts.errors import QloraConfigError
from harness.experts.quantization.scheme import Scheme

NOT_FOR_PARAMETERS = {
    "lora_dropout": "dropout cannot be taken out of a delta that is added to a parameter; set lora_dropout=0.0",
    "use_dora": "DoRA needs the norms of a weight that is a Linear's",
    "lora_bias": "a parameter has no output to add a bias to",
    "use_qalora": "QA-LoRA pools the input of a Linear",
    "fan_in_fan_out": "a parameter says itself how it is stored",
    "velora_config": "VeLoRA works on Linears alone",
    "kasa_config": "KaSA works on Linears alone",
}
"""Settings of ``peft.LoraConfig`` that its ``ParamWrapper`` refuses (0.18.1 to 0.21.2), and why."""
INITIALISES_PARAMETERS = ("gaussian", "eva")
REWRITES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of ``init_lora_weights`` that take a part of the base away, which codes cannot follow and a merge into the original would not."""


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
    kind = str(getattr(getattr(adapter, "peft_type", None), "value", "unknown"))
    if kind != "LORA":
        raise QloraConfigError(f"An adapter of type {kind} is not known to work on quantised experts; LORA is.")
    initialisation = getattr(adapter, "init_lora_weights", True)
    if isinstance(initialisation, str) and initialisation.lower().startswith(REWRITES_THE_BASE):
        raise QloraConfigError(
            f"init_lora_weights={initialisation!r} moves a part of the base into the LoRA, and the base is codes; use True or 'gaussian'."
        )
    parameters = list(getattr(adapter, "target_parameters", None) or ())
    packed = [name for name in parameters if name.rpartition(".")[2] == "weight"]
    if packed:
        raise QloraConfigError(
            f"target_parameters names {packed[0]}, the weight of a Linear, which is packed to another shape; name the Linear in target_modules."
        )
    if parameters and isinstance(initialisation, str) and initialisation.lower() not in INITIALISES_PARAMETERS:
        raise QloraConfigError(
            f"init_lora_weights={initialisation!r} needs a Linear's weight, which target_parameters have none of; use True or 'gaussian'."
        )
    for setting, why in NOT_FOR_PARAMETERS.items():
        if parameters and getattr(adapter, setting, None):
            raise QloraConfigError(f"{setting}={getattr(adapter, setting)} does not go with target_parameters: {why}.")
