"""The funnel: of each kind, how many of the targets that were asked for are left after each step of a cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.contract.funnel import FunnelStep
from harness.contract.tensors import Kind
from harness.worker.observation import Observation
from harness.worker.stages.biases import Bias
from harness.worker.stages.peft_names import Target
from harness.worker.stages.whole import COPIES, trained_weight


def record(observation: Observation, step: FunnelStep, counts: Mapping[Kind, int]) -> None:
    """Write how many targets of each kind are left after a step; of a kind that has none any more, zero."""
    funnel: dict[str, dict[str, int]] = observation.data.setdefault("funnel", {})
    for kind in [*funnel, *counts]:
        funnel.setdefault(kind, {"asked": 0})[step] = counts.get(kind, 0)  # type: ignore[call-overload]


def with_gradient(layers: Mapping[str, tuple[Target, Any]], norms: Mapping[str, float]) -> set[Target]:
    """Return the targets all of whose trained LoRA tensors had a gradient.

    Args:
        layers: key in a saved adapter → (target, layer), as ``lora_layers`` has them.
        norms: the largest norm of each tensor's gradient, by its name in the model.
    """
    found = set()
    for key, (target, _) in layers.items():
        path = key.removeprefix("base_model.model.")
        own = [
            norm
            for name, norm in norms.items()
            if name == path or name.startswith((f"{path}.lora_", f"{path}.{COPIES}."))
        ]
        if own and all(norm > 0.0 for norm in own):
            found.add(target)
    return found


def with_delta(layers: Mapping[str, tuple[Target, Any]], adapter: str) -> set[Target]:
    """Return the targets of whose factors none is zero: one began so, lora_B or an embedding's lora_embedding_A.

    What is trained whole has moved where it is not what it was.
    """
    found = set()
    for target, layer in layers.values():
        if isinstance(layer, Bias):
            found |= {target} if layer.delta.any() else set()
            continue
        if hasattr(layer, "original_module"):
            moved = not trained_weight(layer).equal(layer.original_module.weight)
            found |= {target} if moved else set()
            continue
        for first, second in ((layer.lora_A, layer.lora_B), (layer.lora_embedding_A, layer.lora_embedding_B)):
            if adapter in first:
                factors = (getattr(part[adapter], "weight", part[adapter]) for part in (first, second))
                found |= {target} if all(bool(factor.any()) for factor in factors) else set()
    return found
