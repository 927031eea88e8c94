"""The grouped forward of transformers 5's fused experts under PEFT's ParamWrapper, and whether it may run now.

Nothing is remembered between calls. Adapters can be loaded, switched, merged or removed at any time. So everything is
read off the live modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from harness.experts.errors import IneligibleError
from harness.experts.extraction import recognise_lora
from harness.experts.grouped.arithmetic import FactoredLora, Made, grouped_linear, grouped_lora, routed
from harness.experts.grouped.eligibility import check_untouched, check_weight, is_class
from harness.experts.grouped.groups import Groups
from harness.experts.grouped.products import is_packed, way, way_of_packed

ROLES = ("gate_up_proj", "down_proj")
PARAM_WRAPPER = ("peft.tuners.lora.layer", "ParamWrapper")
DECORATED_BY = "transformers.integrations.moe"
"""Where ``use_experts_implementation`` is.

The forward it gives a class takes (hidden_states, top_k_index, top_k_weights) in every family.
"""
IMPLEMENTATIONS = (None, "eager", "batched_mm", "grouped_mm")
"""transformers' own implementations, which all compute the same; another was chosen for what it does."""
FLAGS = {
    "has_gate": True,
    "has_bias": False,
    "is_transposed": False,
    "is_concatenated": True,
    "has_post_expert_norm": False,
    "_is_expert_parallel": False,
}
"""What the module must say of itself, where its transformers has the attribute. 5.5.0 has the first three."""
KNOWN_SINCE_ALWAYS = ("has_gate", "has_bias", "is_transposed")


@dataclass(frozen=True)
class FusedExperts:
    """Fused experts with their LoRAs, to be called as the module is."""

    experts: Any
    loras: dict[str, FactoredLora]
    dimensions: ClassVar[tuple[int, ...]] = (2, 2, 2)

    def __call__(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return what transformers' own forward returns with W + delta as the weights.

        That is ``transformers.integrations.moe.grouped_mm_experts_forward`` (5.5 to 5.23).
        """
        return routed(
            hidden_states, top_k_index, top_k_weights, num_experts=self.experts.num_experts, expert=self._expert
        )

    def _expert(self, x: torch.Tensor, groups: Groups) -> torch.Tensor:
        return self._project("down_proj", self.experts._apply_gate(self._project("gate_up_proj", x, groups)), groups)  # noqa: SLF001 - the families' own gate

    def _project(self, role: str, x: torch.Tensor, groups: Groups) -> torch.Tensor:
        weight = getattr(self.experts, role)
        x = x.to(weight.dtype)
        return grouped_lora(grouped_linear(x, weight, groups), x, self.loras.get(role), groups)

    def ways(self) -> str:
        """How the products run, by role: the base's, and its LoRA's."""
        said = []
        for role in ROLES:
            weight = getattr(self.experts, role)
            base = f"{way_of_packed(weight)} over runs of packed experts" if is_packed(weight) else way(weight)
            lora = self.loras.get(role)
            said.append(f"{role} {base}, " + (f"LoRA {lora.way(weight.dtype)}" if lora is not None else "no LoRA"))
        return "; ".join(said)


def looks_fused(module: Any) -> bool:
    """Whether a module holds fused experts, of a kind that is understood or not."""
    return _decorated(module) or all(getattr(getattr(module, role, None), "ndim", 0) > 2 for role in ROLES)  # noqa: PLR2004 - more than a matrix


def innermost(module: Any) -> Any:
    """Return the module under PEFT's wrappers."""
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module


def read_fused(outermost: Any) -> FusedExperts:
    """Return the fused experts under a chain of wrappers, as they are now.

    Args:
        outermost: what stands in the MoE block as its experts: ParamWrappers, one in the other, around the experts.

    Raises:
        IneligibleError: something here is not understood, or not what the grouped forward does.
        UnrecognisedLoraError: the same, of a LoRA.
    """
    wrappers, experts = _unwrap(outermost)
    check_fused(experts)
    loras: dict[str, FactoredLora] = {}
    for wrapper in wrappers:
        role = wrapper.parameter_name
        if role not in ROLES:
            raise IneligibleError(f"a LoRA on {role}, which is neither of {', '.join(ROLES)}")
        if wrapper.disable_adapters:
            raise IneligibleError("adapters are disabled")
        if wrapper.merged:
            raise IneligibleError(f"{', '.join(wrapper.merged_adapters)} is merged into {role}")
        if not any(name in wrapper.lora_A for name in wrapper.active_adapters):
            continue
        if role in loras:
            raise IneligibleError(f"two LoRAs are active on {role}")
        found = recognise_lora(wrapper)
        inward, outward = found.facing
        loras[role] = FactoredLora(Made((inward,), found.inward), Made((outward,), found.outward), found.scaling)
    if not loras:
        raise IneligibleError("no LoRA is active")
    for role in ROLES:
        weight = getattr(experts, role)
        check_weight(role, weight, experts.num_experts)
        if role in loras and loras[role].inward.tensors[0].device != weight.device:
            raise IneligibleError(f"the LoRA on {role} is on another device")
    return FusedExperts(experts, loras)


def check_fused(experts: Any) -> None:
    """Refuse experts whose forward is not known to be the one replaced.

    Raises:
        IneligibleError: says why.
    """
    kind = type(experts).__name__
    if not _decorated(experts):
        raise IneligibleError(f"the forward of {kind} is not one that transformers' use_experts_implementation made")
    for name, wanted in FLAGS.items():
        if name not in KNOWN_SINCE_ALWAYS and not hasattr(experts, name):
            continue
        if getattr(experts, name, None) is not wanted:
            raise IneligibleError(f"{kind} says {name} = {getattr(experts, name, None)}")
    chosen = experts.config._experts_implementation  # noqa: SLF001 - what transformers itself dispatches on
    if chosen not in IMPLEMENTATIONS:
        raise IneligibleError(f"the experts implementation {chosen!r} was chosen")


def _unwrap(outermost: Any) -> tuple[list[Any], Any]:
    """Return the ParamWrappers, the outermost first, and the experts in them."""
    wrappers: list[Any] = []
    module = outermost
    while is_class(module, PARAM_WRAPPER):
        wrappers.append(module)
        module = module.base_layer
    if hasattr(module, "base_layer"):
        raise IneligibleError(f"wrapped in {type(module).__name__}, which is not a ParamWrapper")
    for inner in [*wrappers, module][1:]:
        check_untouched(inner)  # the outermost is called as a module, its hooks run
    if "parametrizations" in module._modules:  # noqa: SLF001 - as torch.nn.utils.parametrize.is_parametrized looks
        raise IneligibleError("the experts are parametrized: a LoRA was attached above what is hooked")
    return wrappers, module


def _decorated(module: Any) -> bool:
    forward = type(module).forward
    return getattr(forward, "__globals__", {}).get("__name__") == DECORATED_BY
