"""adapter_config.json, typed: what the merge needs of it, and a refusal by name for what it does not merge.

Anything that would make the trained model differ from "base + scaled lora_B @ lora_A" is refused rather than ignored.
Settings that PEFT, the trainers or the hub add and that do not change the merge are known by name; a setting that is
neither becomes a note, so that a feature invented later is not passed over silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.merge.adapter.bounded_regex import Budget
from harness.merge.adapter.patterns import ModuleRule, PatternTable
from harness.merge.errors import MalformedAdapterError, UnsupportedAdapterError

UNSUPPORTED: Mapping[str, str] = {
    "layer_replication": "replicated layers",
    "use_qalora": "QA-LoRA pooling",
    "alora_invocation_tokens": "activated LoRA, which depends on the prompt and cannot be merged",
    "arrow_config": "Arrow routing",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA, which changes the base weights",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "Megatron parallel layers",
}
"""Settings that must be off (null, false, empty) and what each means."""

INIT_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of init_lora_weights (prefixes) with which PEFT subtracts the initial delta from the base before training."""

IRRELEVANT = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "inference_mode",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "qalora_group_size", "revision",
    "runtime_config",
    "task_type",
})  # fmt: skip
"""Settings that do not change what a trained adapter adds to the base."""

USED = frozenset({
    "alpha_pattern", "bias", "exclude_modules", "fan_in_fan_out", "init_lora_weights", "layers_pattern",
    "layers_to_transform",
    "lora_alpha", "lora_B_layout", "lora_bias", "modules_to_save", "peft_type", "peft_version", "r", "rank_pattern",
    "target_modules", "target_parameters", "trainable_token_indices", "use_dora", "use_rslora",
})  # fmt: skip
BIASES = ("none", "all", "lora_only")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What adapter_config.json says. Names follow PEFT's ``LoraConfig``; None and empty mean what they mean there.

    ``lora_B_layout`` is the marker that newer trainers write, unvalidated here (``layout`` does that).
    ``trainable_token_indices`` are by module name; a plain list, which means the input embedding, is under None.
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: PatternTable
    alpha_pattern: PatternTable
    target_modules: ModuleRule
    exclude_modules: ModuleRule
    target_parameters: frozenset[str]
    layers_to_transform: frozenset[int] | None
    use_dora: bool
    lora_bias: bool
    fan_in_fan_out: bool
    bias: str
    modules_to_save: frozenset[str]
    trainable_token_indices: Mapping[str | None, tuple[int, ...]]
    peft_version: str | None
    lora_B_layout: object  # noqa: N815 - the name in the file
    notes: tuple[str, ...]


LARGEST = 2**31
"""Above any rank or alpha that could be meant, and below where Python's integers stop being floats."""


def _flag(config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise MalformedAdapterError(f"adapter_config.json: {name} should be true or false, not {str(value)[:80]!r}.")
    return bool(value)


def _number(config: Mapping[str, Any], name: str) -> float:
    value = config.get(name)
    # Comparisons come first: they hold for integers of any size, and NaN fails them.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
        raise MalformedAdapterError(f"adapter_config.json: {name} should be a number, not {str(value)[:80]!r}.")
    return value


def _pattern(config: Mapping[str, Any], name: str, budget: Budget) -> PatternTable:
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise MalformedAdapterError(f"adapter_config.json: {name} should map patterns to numbers.")
    return PatternTable({key: _number(value, key) for key in value}, name, budget)


def _names(config: Mapping[str, Any], name: str) -> frozenset[str]:
    value = config.get(name)
    if value is None:
        return frozenset()
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return frozenset(value)
    raise MalformedAdapterError(f"adapter_config.json: {name} should be a list of names, not {str(value)[:80]!r}.")


def _rule(config: Mapping[str, Any], name: str, budget: Budget) -> ModuleRule:
    value = config.get(name)
    return ModuleRule(value if isinstance(value, str) else _names(config, name), name, budget)


def _layers(config: Mapping[str, Any]) -> frozenset[int] | None:
    value = config.get("layers_to_transform")
    if value is None or value == []:
        return None
    layers = [value] if type(value) is int else value
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise MalformedAdapterError("adapter_config.json: layers_to_transform should be an integer or a list of them.")
    return frozenset(layers)


def _tokens(config: Mapping[str, Any]) -> dict[str | None, tuple[int, ...]]:
    """Return trainable_token_indices by module name, each index distinct."""
    value = config.get("trainable_token_indices")
    if not value:
        return {}
    lists: dict[str | None, Any] = dict(value) if isinstance(value, dict) else {None: value}
    for indices in lists.values():
        if not isinstance(indices, list) or not all(type(index) is int and index >= 0 for index in indices):
            raise MalformedAdapterError(
                "adapter_config.json: trainable_token_indices should be lists of token numbers."
            )
        if len(set(indices)) != len(indices):
            raise MalformedAdapterError("adapter_config.json: trainable_token_indices names a token twice.")
    return {name: tuple(indices) for name, indices in lists.items()}


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise UnsupportedAdapterError(
            f"the adapter's peft_type is {str(config.get('peft_type'))[:40]!r}; only LORA is merged."
        )
    for name, meaning in UNSUPPORTED.items():
        if config.get(name):
            raise UnsupportedAdapterError(f"the adapter uses {name} ({meaning}), which this engine does not merge.")
    if config.get("bias", "none") not in BIASES:
        raise UnsupportedAdapterError(
            f"the adapter has bias = {str(config['bias'])[:40]!r}; PEFT knows {', '.join(BIASES)}."
        )
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(INIT_CHANGES_BASE):
        raise UnsupportedAdapterError(
            f"the adapter was initialised with {init!r}, which changes the base weights too; the original base plus"
            " this"
            " adapter is not the trained model.",
            "Save it with PEFT's path_initial_model_for_weight_conversion, which turns it into a plain LoRA, then"
            " merge that.",
        )


def parse_adapter_config(config: Mapping[str, Any]) -> AdapterConfig:
    """Return the typed configuration of a LoRA adapter.

    Raises:
        UnsupportedAdapterError: another method than LoRA, or a feature that is not merged, named.
        MalformedAdapterError: a value of the wrong type.
    """
    _refuse_unsupported(config)
    r = _number(config, "r")
    if type(r) is not int or r < 1:
        raise MalformedAdapterError(f"adapter_config.json: r should be a positive integer, not {r!r}.")
    version = config.get("peft_version")
    budget = Budget()
    unknown = sorted(
        name for name, value in config.items() if name not in IRRELEVANT | USED | UNSUPPORTED.keys() and value
    )
    return AdapterConfig(
        r=r,
        lora_alpha=_number(config, "lora_alpha"),
        use_rslora=_flag(config, "use_rslora"),
        rank_pattern=_pattern(config, "rank_pattern", budget),
        alpha_pattern=_pattern(config, "alpha_pattern", budget),
        target_modules=_rule(config, "target_modules", budget),
        exclude_modules=_rule(config, "exclude_modules", budget),
        target_parameters=_names(config, "target_parameters"),
        layers_to_transform=_layers(config),
        use_dora=_flag(config, "use_dora"),
        lora_bias=_flag(config, "lora_bias"),
        fan_in_fan_out=_flag(config, "fan_in_fan_out"),
        bias=config.get("bias", "none"),
        modules_to_save=_names(config, "modules_to_save"),
        trainable_token_indices=_tokens(config),
        peft_version=version if isinstance(version, str) else None,
        lora_B_layout=config.get("lora_B_layout"),
        notes=tuple(f"adapter_config.json has the unknown setting {name}; it was ignored." for name in unknown),
    )
