"""Attaching the LoRA, saying exactly what is targeted, and counting what got one.

PEFT 0.19 and later on transformers 5 rewrite ``target_modules`` that end in ``gate_proj`` / ``up_proj`` / ``down_proj``
into targets on the fused experts (``peft.utils.transformers_weight_conversion._convert_peft_config_moe``). So they
silently lose the dense MLP and the shared experts of the same names. There those Linears are named through
``target_parameters`` (``….gate_proj.weight``), which PEFT leaves alone. Everything is targeted by its full name.
"""

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
from harness.worker.releases import release
from harness.worker.request import Request

ROLES_OF_LINEARS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
REWRITTEN_SUFFIXES = (".gate_proj", ".up_proj", ".down_proj")

Target = tuple[str, str | None]
"""In-memory module path, and the parameter's name where the parameter itself is targeted (fused experts)."""


def expected_targets(checkpoint: Checkpoint, recipe: Recipe, *, fused: bool) -> dict[str, set[Target]]:
    """Return what must get a LoRA, per kind, from the checkpoint's own description.

    Args:
        checkpoint: what was written to disk.
        recipe: what is trained.
        fused: whether the model in memory holds fused 3D experts (transformers 5) or a ModuleList of Linears (4.x).
    """
    targets: dict[str, set[Target]] = defaultdict(set)
    for spec in checkpoint.tensors:
        if spec.module is None or spec.kind not in recipe.kinds:
            continue
        if spec.role is None:
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


def attach(model: Any, targets: dict[str, set[Target]], recipe: Recipe, rank: int, seed: int) -> Any:
    """Return the PEFT model with a LoRA on every target; lora_B starts at zero, as PEFT does it."""
    import peft
    import torch
    import transformers

    rewrites = release(transformers.__version__) >= (5, 0) and release(peft.__version__) >= (0, 19)
    modules: list[str] = []
    parameters: list[str] = []
    for module, parameter in sorted(target for kind in targets.values() for target in kind):
        if parameter is not None:
            parameters.append(f"{module}.{parameter}")
        elif rewrites and module.endswith(REWRITTEN_SUFFIXES):
            parameters.append(f"{module}.weight")
        else:
            modules.append(module)
    options: dict[str, Any] = {}
    if modules:
        options["target_modules"] = modules
    if parameters:
        options["target_parameters"] = parameters
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank * recipe.alpha_over_rank,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        **options,
    )
    torch.manual_seed(seed)
    return peft.get_peft_model(model, config)


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


def check_attached(observation: Observation, peft_model: Any, targets: dict[str, set[Target]]) -> None:
    """Count what got a LoRA per kind and hold it against what should have."""
    found = {target for target, _ in lora_layers(peft_model).values()}
    wanted = {target for kind in targets.values() for target in kind}
    per_kind = {
        kind: f"{len(found & wanted_of_kind)}/{len(wanted_of_kind)}" for kind, wanted_of_kind in targets.items()
    }
    observation.data.setdefault("training", {})["attached"] = per_kind

    def judged(found: set[Target]) -> Judgement:
        missing, surplus = sorted(map(str, wanted - found)), sorted(map(str, found - wanted))
        return Judgement(
            value=f"{len(found & wanted)}/{len(wanted)}",
            band=f"== {len(wanted)}/{len(wanted)}",
            passed=found == wanted,
            detail=f"without a LoRA: {missing[:4]}; with one that was not asked for: {surplus[:4]}",
        )

    observation.judge("attached", "attach", judged(found), control=judged(found - set(list(wanted)[:1])))


def lora_tensors(peft_model: Any, targets: dict[str, set[Target]]) -> dict[str, dict[str, Any]]:
    """Return the trainable LoRA tensors per targeted kind: kind → name → parameter."""
    kinds = {target: kind for kind, members in targets.items() for target in members}
    result: dict[str, dict[str, Any]] = {kind: {} for kind in targets}
    for key, (target, layer) in lora_layers(peft_model).items():
        if target in kinds:
            for part in ("lora_A", "lora_B"):
                for name, tensor in getattr(layer, part).named_parameters():
                    result[kinds[target]][f"{key.removeprefix('base_model.model.')}.{part}.{name}"] = tensor
    return result


def trainable_outside_lora(peft_model: Any) -> list[str]:
    """Return the names of trainable parameters that are no LoRA: there should be none."""
    return [name for name, p in peft_model.named_parameters() if p.requires_grad and ".lora_" not in name]


def attach_and_check(
    observation: Observation, model: Any, checkpoint: Checkpoint, recipe: Recipe, request: Request, rank: int
) -> tuple[Any, dict[str, set[Target]]]:
    """Attach and count; return the PEFT model and what was targeted."""
    fused = has_fused_experts(model, checkpoint)
    targets = expected_targets(checkpoint, recipe, fused=fused)
    facts = CellFacts(
        kinds=tuple(kind for kind in KINDS if kind in targets),
        quantized=recipe.quantization is not None,
        fused_experts=fused,
        defined=is_defined(request.family),
        plain_batches=recipe.plain_batches,
        resumed=recipe.resumed,
    )
    observation.data["facts"] = asdict(facts)
    peft_model = attach(model, targets, recipe, rank, request.seed)
    check_attached(observation, peft_model, targets)
    return peft_model, targets
