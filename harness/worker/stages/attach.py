"""Attaching the LoRA, saying exactly what is targeted, and counting what got one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import Any

from harness.contract.facts import CellFacts
from harness.contract.tensors import KINDS
from harness.definitions import is_defined
from harness.worker.checkpoints.family import Checkpoint
from harness.worker.observation import Judgement, Observation
from harness.worker.recipes.recipe import Recipe
from harness.worker.request import Request
from harness.worker.stages.peft_names import (
    REWRITTEN_SUFFIXES,
    Target,
    name_of,
    rank_and_scaling,
    rewrites_names_of,
)
from harness.worker.stages.two_adapters import FROZEN, TRAINED, freeze

ROLES_OF_LINEARS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
MAGNITUDE = "lora_magnitude_vector"
"""What PEFT calls DoRA's part of a layer, and of a saved key."""


def expected_targets(
    checkpoint: Checkpoint, recipe: Recipe, *, fused: bool, rewritten: bool = False
) -> dict[str, set[Target]]:
    """Return what must get a LoRA, per kind, from the checkpoint's own description.

    Args:
        checkpoint: what was written to disk.
        recipe: what is trained.
        fused: whether the model in memory holds fused 3D experts (transformers 5) or a ModuleList of Linears (4.x).
        rewritten: whether PEFT takes projections that it is given by name for those of the fused experts. So what it
            refuses on parameters is out of their reach.
    """
    targets: dict[str, set[Target]] = defaultdict(set)
    for spec in checkpoint.tensors:
        if spec.module is None or spec.kind not in recipe.kinds:
            continue
        if spec.role is None:
            if not (recipe.linears_only and rewritten and spec.module.endswith(REWRITTEN_SUFFIXES)):
                targets[spec.kind].add((spec.module, None))
            continue
        for role in recipe.expert_roles:
            if fused:
                targets[spec.kind].add((spec.module, role))
                continue
            experts = range(checkpoint.num_experts) if spec.expert is None else (spec.expert,)
            targets[spec.kind] |= {
                (f"{spec.module}.{e}.{name}", None) for e in experts for name in ROLES_OF_LINEARS[role]
            }
    return dict(targets)


def has_fused_experts(model: Any, checkpoint: Checkpoint) -> bool:
    """Whether the first layer with experts holds them as 3D parameters."""
    experts = model.get_submodule(f"model.layers.{checkpoint.layers_with_experts[0]}.mlp.experts")
    return hasattr(experts, "gate_up_proj")


def attach(model: Any, targets: dict[str, set[Target]], recipe: Recipe, rank: int, request: Request) -> Any:
    """Return the PEFT model with a LoRA on every target; lora_B starts at zero, as PEFT does it.

    That of an earlier adapter is drawn at random whole.
    """
    import peft
    import torch

    modules: list[str] = []
    parameters: list[str] = []
    for target in sorted(target for kind in targets.values() for target in kind):
        name = name_of(target, recipe)
        (modules if name == target[0] else parameters).append(name)
    options: dict[str, Any] = {}
    if modules:
        options["target_modules"] = modules
    if parameters:
        options["target_parameters"] = parameters
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank * recipe.alpha_over_rank,
        rank_pattern=dict(recipe.rank_pattern),
        alpha_pattern=dict(recipe.alpha_pattern),
        use_rslora=recipe.use_rslora,
        init_lora_weights=recipe.init_lora_weights,
        use_dora=recipe.use_dora,
        lora_dropout=recipe.dropout,
        bias="none",
        task_type="CAUSAL_LM",
        **options,
    )
    torch.manual_seed(request.seed)
    if not recipe.frozen:
        return peft.get_peft_model(model, config)
    earlier = peft.LoraConfig(
        r=rank,
        lora_alpha=rank * recipe.alpha_over_rank,
        target_modules=sorted(module for kind in recipe.frozen for module, _ in targets[kind]),
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    peft_model = peft.get_peft_model(model, earlier, adapter_name=FROZEN)
    peft_model.add_adapter(TRAINED, config)
    freeze(peft_model, request.work)
    return peft_model


def lora_layers(peft_model: Any) -> dict[str, tuple[Target, Any]]:
    """Return every LoRA of the model: its key in a saved adapter → (target, layer).

    The key is the module path in front of ``.lora_A.weight``. Wrapped parameters of one module nest. The path of the
    inner one then ends in ``.base_layer``. The target is the module that holds the parameter.
    """
    from peft.tuners.lora import LoraLayer

    found: dict[str, tuple[Target, Any]] = {}
    for name, module in peft_model.named_modules():
        if not isinstance(module, LoraLayer) or not module.lora_A:
            continue
        path = name.removeprefix("base_model.model.")
        while path.endswith(".base_layer"):
            path = path.removesuffix(".base_layer")
        parameter = getattr(module, "parameter_name", None)
        # A wrapped ``weight`` is the Linear itself, by another door.
        found[name] = ((path, None if parameter == "weight" else parameter), module)
    return found


def adapters_of(layer: Any) -> list[str]:
    """Return the names of the adapters that have a LoRA on a layer, the trained one first."""
    return [name for name in (TRAINED, FROZEN) if name in layer.lora_A]


def magnitudes(layer: Any) -> Any:
    """Return the modules that hold DoRA's magnitudes, by adapter; none where the layer has a plain LoRA."""
    return getattr(layer, MAGNITUDE, None) or {}


def check_attached(
    observation: Observation, peft_model: Any, targets: dict[str, set[Target]], recipe: Recipe, rank: int
) -> None:
    """Count what got the LoRA that was asked for, per kind, and hold it against what should have."""
    pairs = {
        (adapter, target): layer for target, layer in lora_layers(peft_model).values() for adapter in adapters_of(layer)
    }
    found = {
        (adapter, target)
        for (adapter, target), layer in pairs.items()
        if (adapter in magnitudes(layer)) == recipe.use_dora
        and (layer.r[adapter], layer.scaling[adapter]) == rank_and_scaling(name_of(target, recipe), recipe, rank)
    }
    per_adapter = {TRAINED: tuple(targets), FROZEN: recipe.frozen}
    wanted = {(adapter, target) for adapter, kinds in per_adapter.items() for kind in kinds for target in targets[kind]}
    surplus = pairs.keys() - wanted
    trained = {target for adapter, target in found if adapter == TRAINED}
    observation.data.setdefault("training", {})["attached"] = {
        kind: f"{len(trained & members)}/{len(members)}" for kind, members in targets.items()
    }

    def judged(found: set[tuple[str, Target]]) -> Judgement:
        missing, beyond = sorted(map(str, wanted - found)), sorted(map(str, surplus))
        return Judgement(
            value=f"{len(found & wanted)}/{len(wanted)}",
            band=f"== {len(wanted)}/{len(wanted)}",
            passed=not missing and not beyond,
            detail=f"without the LoRA asked for: {missing[:4]}; with one that was not asked for: {beyond[:4]}",
        )

    observation.judge("attached", "attach", judged(found), control=judged(found - set(list(wanted)[:1])))


def lora_tensors(peft_model: Any, targets: dict[str, set[Target]]) -> dict[str, dict[str, Any]]:
    """Return the LoRA tensors to be trained per targeted kind: kind → name → parameter."""
    kinds = {target: kind for kind, members in targets.items() for target in members}
    result: dict[str, dict[str, Any]] = {kind: {} for kind in targets}
    for key, (target, layer) in lora_layers(peft_model).items():
        if target in kinds:
            parts = ("lora_A", "lora_B", *([MAGNITUDE] if magnitudes(layer) else []))
            for part in parts:
                for name, tensor in getattr(layer, part)[TRAINED].named_parameters():
                    path = f"{key.removeprefix('base_model.model.')}.{part}.{TRAINED}.{name}"
                    result[kinds[target]][path] = tensor
    return result


def trainable_outside_lora(peft_model: Any) -> list[str]:
    """Return the names of trainable parameters that are no LoRA, or an earlier adapter's: there should be none."""
    return [
        name
        for name, p in peft_model.named_parameters()
        if p.requires_grad and (".lora_" not in name or f".{FROZEN}." in name)
    ]


def attach_and_check(
    observation: Observation, model: Any, checkpoint: Checkpoint, recipe: Recipe, request: Request, rank: int
) -> tuple[Any, dict[str, set[Target]]]:
    """Attach and count; return the PEFT model and what was targeted."""
    fused = has_fused_experts(model, checkpoint)
    targets = expected_targets(checkpoint, recipe, fused=fused, rewritten=rewrites_names_of(model))
    facts = CellFacts(
        kinds=tuple(kind for kind in KINDS if kind in targets),
        quantized=recipe.quantization is not None,
        fused_experts=fused,
        defined=is_defined(request.family),
        plain_batches=recipe.plain_batches,
        resumed=recipe.resumed,
        per_expert=recipe.per_expert,
    )
    observation.data["facts"] = asdict(facts)
    peft_model = attach(model, targets, recipe, rank, request)
    check_attached(observation, peft_model, targets, recipe, rank)
    return peft_model, targets
