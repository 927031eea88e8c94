"""Attaching the LoRA, saying exactly what is targeted, and counting what got one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from harness.contract.facts import CellFacts
from harness.contract.tensors import KINDS
from harness.definitions import is_defined
from harness.worker.checkpoints.family import Checkpoint
from harness.worker.observation import Judgement, Observation
from harness.worker.recipes.recipe import Recipe
from harness.worker.releases import known_to_lora
from harness.worker.request import Request
from harness.worker.stages.biases import BIAS, biases_of, keep
from harness.worker.stages.funnel import record
from harness.worker.stages.peft_names import Target, name_of, rank_and_scaling
from harness.worker.stages.targets import also_allowed, by_kind, expected_targets, form_of
from harness.worker.stages.two_adapters import FROZEN, TRAINED, freeze
from harness.worker.stages.whole import COPIES, is_trained, trained_weight, whole_modules

MAGNITUDE = "lora_magnitude_vector"
"""What PEFT calls DoRA's part of a layer, and of a saved key."""


def attach(model: Any, targets: dict[str, set[Target]], recipe: Recipe, rank: int, request: Request) -> Any:
    """Return the PEFT model with a LoRA on every target; lora_B starts at zero, as PEFT does it.

    That of an earlier adapter is drawn at random whole.

    Raises:
        UnsupportedError: this release of PEFT cannot be told of such targets.
    """
    import peft
    import torch

    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank * recipe.alpha_over_rank,
        rank_pattern=dict(recipe.rank_pattern),
        alpha_pattern=dict(recipe.alpha_pattern),
        use_rslora=recipe.use_rslora,
        init_lora_weights=recipe.init_lora_weights,
        use_dora=recipe.use_dora,
        lora_dropout=recipe.dropout,
        bias=recipe.bias,
        task_type="CAUSAL_LM",
        **known_to_lora(peft.LoraConfig, _told_of_targets(targets, recipe)),
    )
    torch.manual_seed(request.seed)
    if not recipe.frozen:
        return peft.get_peft_model(model, config)
    of_earlier: dict[str, set[Target]] = {kind: members for kind, members in targets.items() if kind in recipe.frozen}
    earlier = peft.LoraConfig(
        r=rank,
        lora_alpha=rank * recipe.alpha_over_rank,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        **known_to_lora(peft.LoraConfig, _told_of_targets(of_earlier, recipe)),
    )
    peft_model = peft.get_peft_model(model, earlier, adapter_name=FROZEN)
    peft_model.add_adapter(TRAINED, config)
    freeze(peft_model, request.work)
    return peft_model


def _told_of_targets(targets: dict[str, set[Target]], recipe: Recipe) -> dict[str, Any]:
    """Return how PEFT is told what gets a LoRA: in the recipe's own words, or by everything's full name."""
    told: dict[str, tuple[str, ...] | str] = {
        "target_modules": recipe.target_modules,
        "target_parameters": recipe.target_parameters,
    }
    if not recipe.as_written:
        lora = (members for kind, members in targets.items() if kind not in recipe.whole)
        names = {target: name_of(target, recipe) for members in lora for target in members if target[1] != BIAS}
        told[COPIES] = tuple(sorted(module for kind in recipe.whole for module, _ in targets.get(kind, ())))
        told["target_modules"] = tuple(sorted(name for (module, _), name in names.items() if name == module))
        told["target_parameters"] = tuple(sorted(name for (module, _), name in names.items() if name != module))
    return {option: said if isinstance(said, str) else list(said) for option, said in told.items() if said}


def lora_layers(peft_model: Any) -> dict[str, tuple[Target, Any]]:
    """Return every LoRA of the model: its key in a saved adapter → (target, layer).

    The key is the module path in front of ``.lora_A.weight``, or of ``.lora_embedding_A``. Wrapped parameters of one
    module nest. The path of the inner one then ends in ``.base_layer``. The target is the module that holds the
    parameter.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    found: dict[str, tuple[Target, Any]] = {}
    for name, module in peft_model.named_modules():
        if not isinstance(module, LoraLayer) or not (module.lora_A or module.lora_embedding_A):
            continue
        path = name.removeprefix("base_model.model.")
        while path.endswith(".base_layer"):
            path = path.removesuffix(".base_layer")
        parameter = getattr(module, "parameter_name", None)
        # The wrapped weight of a Linear is the Linear itself, by another door. A router's is its own.
        linear = parameter == "weight" and isinstance(module.get_base_layer(), torch.nn.Linear)
        found[name] = ((path, None if linear else parameter), module)
    return found


def factors_of(layer: Any) -> tuple[str, str]:
    """Return what PEFT calls the two factors of a layer: those of an embedding have names of their own."""
    return ("lora_embedding_A", "lora_embedding_B") if layer.lora_embedding_A else ("lora_A", "lora_B")


def adapters_of(layer: Any) -> list[str]:
    """Return the names of the adapters that have a LoRA on a layer, the trained one first."""
    return [name for name in (TRAINED, FROZEN) if name in getattr(layer, factors_of(layer)[0])]


def magnitudes(layer: Any) -> Any:
    """Return the modules that hold DoRA's magnitudes, by adapter; none where the layer has a plain LoRA."""
    return getattr(layer, MAGNITUDE, None) or {}


def dtypes_of(layer: Any, adapter: str) -> set[str]:
    """Return the dtypes of an adapter's tensors on a layer.

    PEFT makes them in float32 whatever the base is in (``autocast_adapter_dtype``, 0.18.1 to 0.21.2). Releases of TRL
    that cast them do it later.
    """
    parts = [getattr(layer, part, None) or {} for part in (*factors_of(layer), MAGNITUDE)]
    held = [part[adapter] for part in parts if adapter in part]
    return {str(weight.dtype) for it in held for weight in (it.parameters() if hasattr(it, "parameters") else (it,))}


def check_attached(
    observation: Observation,
    peft_model: Any,
    targets: Mapping[str, set[Target]],
    recipe: Recipe,
    rank: int,
    allowed: Mapping[str, set[Target]] | None = None,
) -> set[Target]:
    """Count what got the LoRA that was asked for, per kind, and hold it against what should have.

    Args:
        observation: where the check goes.
        peft_model: the model.
        targets: what is asked for, per kind.
        recipe: how.
        rank: of what no pattern fits.
        allowed: what may have a LoRA, and need not.

    Returns:
        What has the LoRA that is to be trained, as it was asked for, or allowed.
    """
    pairs = {
        (adapter, target): layer for target, layer in lora_layers(peft_model).values() for adapter in adapters_of(layer)
    }
    found = {
        (adapter, target)
        for (adapter, target), layer in pairs.items()
        if (adapter in magnitudes(layer)) == recipe.use_dora
        and (layer.r[adapter], layer.scaling[adapter]) == rank_and_scaling(name_of(target, recipe), recipe, rank)
        and dtypes_of(layer, adapter) == {"torch.float32"}
    }
    whole = {target for target, _ in whole_modules(peft_model).values()}
    whole |= {target for target, bias in biases_of(lora_layers(peft_model)).values() if bias.parameter.requires_grad}
    asked_whole = {target for kind in recipe.whole for target in targets.get(kind, ())}
    asked_whole |= {target for members in targets.values() for target in members if target[1] == BIAS}
    found = {(adapter, target) for adapter, target in found if target not in asked_whole}
    found |= {(TRAINED, target) for target in whole & asked_whole}
    per_adapter = {TRAINED: tuple(targets), FROZEN: recipe.frozen}
    wanted = {(adapter, target) for adapter, kinds in per_adapter.items() for kind in kinds for target in targets[kind]}
    may_be = found & {(TRAINED, target) for members in (allowed or {}).values() for target in members}
    surplus = {pair for pair in pairs if pair[1] in asked_whole or pair not in wanted | may_be}
    surplus |= {(TRAINED, target) for target in whole - asked_whole}
    trained = {target for adapter, target in found & (wanted | may_be) if adapter == TRAINED}
    observation.data.setdefault("training", {})["attached"] = {
        kind: f"{len(trained & members)}/{len(members)}" for kind, members in targets.items()
    }

    def judged(found: set[tuple[str, Target]]) -> Judgement:
        missing, beyond = sorted(map(str, wanted - found)), sorted(map(str, surplus))
        lacking = [kind for kind, members in targets.items() if not {(TRAINED, target) for target in members} <= found]
        return Judgement(
            value=f"{len(found & wanted)}/{len(wanted)}",
            band=f"== {len(wanted)}/{len(wanted)}",
            passed=not missing and not beyond,
            detail=f"without the LoRA asked for: {', '.join(sorted(lacking)) or 'nothing'} {missing[:4]}; "
            f"with one that was not asked for: {beyond[:4]}",
        )

    observation.judge("attached", "attach", judged(found), control=judged(found - set(list(wanted)[:1])))
    return trained


def lora_tensors(peft_model: Any, targets: dict[str, set[Target]]) -> dict[str, dict[str, Any]]:
    """Return the tensors to be trained per targeted kind, LoRA or whole: kind → name → parameter."""
    kinds = {target: kind for kind, members in targets.items() for target in members}
    result: dict[str, dict[str, Any]] = {kind: {} for kind in targets}
    for key, (target, layer) in lora_layers(peft_model).items():
        if target in kinds:
            for part in (*factors_of(layer), *([MAGNITUDE] if magnitudes(layer) else [])):
                path = f"{key.removeprefix('base_model.model.')}.{part}"
                for name, tensor in getattr(layer, part).named_parameters():
                    if name.partition(".")[0] == TRAINED:
                        result[kinds[target]][f"{path}.{name}"] = tensor
    for name, (target, bias) in biases_of(lora_layers(peft_model)).items():
        if target in kinds:
            result[kinds[target]][name.removeprefix("base_model.model.")] = bias.parameter
    for target, wrapper in whole_modules(peft_model).values():
        if target in kinds:
            result[kinds[target]][f"{target[0]}.{COPIES}.{TRAINED}.weight"] = trained_weight(wrapper)
    return result


def trainable_outside_lora(peft_model: Any) -> list[str]:
    """Return the names of trainable parameters that are no LoRA and not trained whole, or an earlier adapter's.

    There should be none.
    """
    return [
        name
        for name, p in peft_model.named_parameters()
        if p.requires_grad and (not is_trained(name) or f".{FROZEN}." in name)
    ]


def attach_and_check(
    observation: Observation, model: Any, checkpoint: Checkpoint, recipe: Recipe, request: Request, rank: int
) -> tuple[Any, dict[str, set[Target]]]:
    """Attach and count; return the PEFT model and what is to be trained.

    That is what the recipe targets. Of one that says what a user writes it is what got a LoRA, so the cell goes on.
    """
    form = form_of(model, checkpoint)
    targets = expected_targets(checkpoint, recipe, form)
    allowed = also_allowed(checkpoint, recipe, form)
    peft_model = attach(model, targets, recipe, rank, request)
    keep(biases_of(lora_layers(peft_model)), request.work)
    found = check_attached(observation, peft_model, targets, recipe, rank, allowed)
    record(observation, "asked", by_kind(checkpoint, (target for members in targets.values() for target in members)))
    record(observation, "attached", by_kind(checkpoint, found))
    if recipe.as_written:
        targets = _attached_alone(peft_model, targets, allowed)
    facts = CellFacts(
        kinds=tuple(kind for kind in KINDS if kind in targets),
        quantized=recipe.quantization is not None,
        fused_experts=form.fused,
        defined=is_defined(request.family),
        plain_batches=recipe.plain_batches,
        resumed=recipe.resumed,
        adapters_on_experts=2 if "expert" in recipe.frozen else 1,
        per_expert=recipe.per_expert,
        resized=recipe.new_tokens > 0,
    )
    observation.data["facts"] = asdict(facts)
    return peft_model, targets


def _attached_alone(peft_model: Any, *groups: Mapping[str, set[Target]]) -> dict[str, set[Target]]:
    """Return what has a LoRA of all that may have one, per kind: the rest of the cell is about that."""
    found = {target for target, _ in lora_layers(peft_model).values()}
    kept = {kind: members & found for group in groups for kind, members in group.items()}
    return {kind: members for kind, members in kept.items() if members}
