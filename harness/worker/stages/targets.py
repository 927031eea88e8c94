"""What a recipe asks for, counted from the checkpoint's own description: every target, per kind.

A recipe that says what a user writes is read as the user means it. A name is every module of that name, and the routed
experts' projections of that name, whether the model in memory holds them as Linears or in one parameter. ``all-linear``
is every linear map of a decoder layer: PEFT counts fused experts among them, because they were Linears
(huggingface/peft#3232).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from harness.contract.tensors import KINDS, Kind
from harness.worker.checkpoints.family import Checkpoint, Introspected
from harness.worker.recipes.recipe import Recipe
from harness.worker.stages.biases import BIAS
from harness.worker.stages.peft_names import REWRITTEN_SUFFIXES, Target, rewrites_names_of

ROLES_OF_LINEARS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
ALL_LINEAR = "all-linear"
HEAD = "lm_head"


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a model in memory holds what a checkpoint describes.

    Attributes:
        fused: whether experts are 3D parameters (transformers 5), or a ModuleList of Linears (4.x).
        linear_router: whether the router is a Linear, or holds a parameter of its own.
        rewritten: whether PEFT takes projections that it is given by name for those of the fused experts. So what it
            refuses on parameters is out of their reach.
    """

    fused: bool
    linear_router: bool = False
    rewritten: bool = False


def form_of(model: Any, checkpoint: Checkpoint) -> Form:
    """Return the form of a loaded model, by its first layer with experts."""
    import torch

    if checkpoint.introspected is not None:
        parts = checkpoint.introspected.parts
        routers = {part.parameter for part in parts if part.kind == "router"}
        fused = all(one.parameters for one in checkpoint.introspected.experts)
        return Form(fused=fused, linear_router=routers == {None}, rewritten=rewrites_names_of(model))
    block = model.get_submodule(f"model.layers.{checkpoint.layers_with_experts[0]}.mlp")
    return Form(
        fused=hasattr(block.experts, "gate_up_proj"),
        linear_router=isinstance(block.gate, torch.nn.Linear),
        rewritten=rewrites_names_of(model),
    )


def expected_targets(checkpoint: Checkpoint, recipe: Recipe, form: Form) -> dict[str, set[Target]]:
    """Return what is trained, per kind: what must get a LoRA, and biases beside it."""
    targets = _of_lora(checkpoint, recipe, form)
    if "head" in recipe.kinds and checkpoint.config.get("tie_word_embeddings"):
        targets["head"].add((HEAD, None))  # which has no tensor of its own
    for kind, target in _biases(checkpoint, recipe):
        targets[kind].add(target)
    return {kind: members for kind, members in targets.items() if members}


def _of_lora(checkpoint: Checkpoint, recipe: Recipe, form: Form) -> dict[str, set[Target]]:
    """Return what must get a LoRA, per kind."""
    if checkpoint.introspected is not None:
        return _found_targets(checkpoint.introspected, recipe)
    return _described_targets(checkpoint, recipe, form)


def _described_targets(checkpoint: Checkpoint, recipe: Recipe, form: Form) -> dict[str, set[Target]]:
    """Return what must get a LoRA of a family with a file, by its description."""
    targets: dict[str, set[Target]] = defaultdict(set)
    for spec in checkpoint.tensors:
        if spec.module is None or spec.kind not in recipe.kinds:
            continue
        if spec.kind == "router" and checkpoint.num_experts == 1:
            continue  # it chooses the one expert whatever it says, so no gradient reaches it
        if spec.kind == "router" and recipe.as_written and not form.linear_router:
            continue  # it is no module that a name could mean: see ``also_allowed``
        if spec.role is None:
            out_of_reach = recipe.linears_only and form.rewritten and spec.module.endswith(REWRITTEN_SUFFIXES)
            if not out_of_reach and _is_meant(recipe, spec.module.rpartition(".")[2]):
                targets[spec.kind].add(_alone(spec.module, spec.kind, form))
            continue
        experts = range(checkpoint.num_experts) if spec.expert is None else (spec.expert,)
        for role in recipe.expert_roles:
            for name in ROLES_OF_LINEARS[role]:
                if _is_meant(recipe, name):
                    found = _of_experts(spec.module, role if form.fused else name, fused=form.fused, experts=experts)
                    targets[spec.kind] |= found
    return targets


def _biases(checkpoint: Checkpoint, recipe: Recipe) -> list[tuple[Kind, Target]]:
    """Return the biases that are trained: those of Linears of the kinds that get a LoRA."""
    asked = recipe.kinds if recipe.bias == "lora_only" else ()
    return [(spec.kind, (spec.bias_of, BIAS)) for spec in checkpoint.tensors if spec.bias_of and spec.kind in asked]


def _found_targets(inside: Introspected, recipe: Recipe) -> dict[str, set[Target]]:
    """Return what must get a LoRA of a family without a file: all that was found of each kind."""
    targets: dict[str, set[Target]] = defaultdict(set)
    for part in inside.parts:
        left_out = part.parameter in ROLES_OF_LINEARS and part.parameter not in recipe.expert_roles
        if part.kind in recipe.kinds and not left_out and (part.parameter is None or not recipe.linears_only):
            targets[part.kind].add((part.module, part.parameter))
    return dict(targets)


def also_allowed(checkpoint: Checkpoint, recipe: Recipe, form: Form) -> dict[str, set[Target]]:
    """Return what may get a LoRA, and need not: by ``all-linear`` a router that is no Linear.

    PEFT 0.20 and later take it along where transformers 4 had a Linear of that name in some family.
    """
    if recipe.target_modules != ALL_LINEAR or form.linear_router:
        return {}
    modules = [spec.module for spec in checkpoint.tensors if spec.kind == "router" and spec.module is not None]
    routers = {_alone(module, "router", form) for module in modules}
    return {"router": routers} if routers else {}


def kind_of(checkpoint: Checkpoint, target: Target) -> Kind:
    """Return what a target is part of.

    Raises:
        KeyError: the checkpoint describes nothing there.
    """
    if checkpoint.introspected is not None:
        return {(part.module, part.parameter): part.kind for part in checkpoint.introspected.parts}[target]
    kinds = {spec.module: spec.kind for spec in checkpoint.tensors if spec.module is not None}
    kinds.setdefault(HEAD, "head")  # the embedding, where the two are tied
    module, _ = target
    return kinds[module] if module in kinds else kinds[module.rsplit(".", 2)[0]]  # a Linear of one expert


def by_kind(checkpoint: Checkpoint, targets: Iterable[Target]) -> dict[Kind, int]:
    """Return how many targets there are of each kind."""
    found = [kind_of(checkpoint, target) for target in targets]
    return {kind: found.count(kind) for kind in KINDS if kind in found}


def _is_meant(recipe: Recipe, name: str) -> bool:
    """Whether a recipe's words mean a projection of that name: those that name no modules mean all of its kinds."""
    return not recipe.target_modules or recipe.target_modules == ALL_LINEAR or name in recipe.target_modules


def _alone(module: str, kind: Kind, form: Form) -> Target:
    """Return the target of a module that is none of the routed experts."""
    return module, "weight" if kind == "router" and not form.linear_router else None


def _of_experts(module: str, name: str, *, fused: bool, experts: Iterable[int]) -> set[Target]:
    """Return the targets of that name, a fused parameter or a Linear of each expert."""
    return {(module, name)} if fused else {(f"{module}.{e}.{name}", None) for e in experts}
