"""Experts as a list of MLPs of Linears (transformers 4.57), plain or bitsandbytes', under PEFT's LoRA on each Linear.

The base Linears run one expert after the other, by their own modules. Stacking their weights would copy them.
bitsandbytes unpacks a weight at each use anyway, in forward and in backward. What is grouped is the LoRA, which is
small enough to stack at each call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from harness.experts.errors import IneligibleError
from harness.experts.grouped.arithmetic import FactoredLora, Made, grouped_lora, routed
from harness.experts.grouped.eligibility import check_untouched, is_class
from harness.experts.grouped.groups import Groups

ROLES = ("gate_proj", "up_proj", "down_proj")
BLOCKS = {
    ("deepseek_v3", "DeepseekV3MoE"): ("moe", "DeepseekV3MLP"),
    ("glm4_moe", "Glm4MoeMoE"): ("moe", "Glm4MoeMLP"),
    ("qwen3_moe", "Qwen3MoeSparseMoeBlock"): ("forward", "Qwen3MoeMLP"),
}
"""By model type and class of a block: its method that loops over the experts, and the class of an expert (4.57.6).

The method is ``moe(hidden_states, top_k_index, top_k_weights)``, or ``forward`` where that routes as Qwen3's does.
"""
LORA_LINEARS = (
    ("peft.tuners.lora.layer", "Linear"),
    ("peft.tuners.lora.bnb", "Linear4bit"),
    ("peft.tuners.lora.bnb", "Linear8bitLt"),
)
"""PEFT's layers of which the forward is base_layer(x) + lora_B(lora_A(x)) * scaling (0.18.1 to 0.21.2)."""


@dataclass(frozen=True)
class ExpertLinears:
    """One Linear of every expert, and the LoRA on them.

    ``factors``: lora_A (rank, in) and lora_B (out, rank) of each expert. Either all experts have them or none.
    """

    bases: tuple[Any, ...]
    factors: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    scaling: float = 1.0

    def __call__(self, x: torch.Tensor, groups: Groups) -> torch.Tensor:
        """Return what PEFT's layers return for x (rows, in), sorted by expert, with their choice of dtypes."""
        used = [expert for expert, size in enumerate(groups.sizes) if size]
        parts = x.split([groups.sizes[expert] for expert in used])
        base = torch.cat([self.bases[expert](rows) for expert, rows in zip(used, parts, strict=True)])
        if not self.factors:
            return base
        lora = self.stacked(used)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.factors[0][0].dtype
        return grouped_lora(base, x.to(dtype), lora, Groups(groups.ends[used])).to(base.dtype)

    def stacked(self, used: list[int]) -> FactoredLora:
        """Return the LoRA of these experts alone.

        So an expert without tokens gets no gradient. With a gradient of zeros an optimiser would step.
        """
        inward, outward = (Made(tuple(self.factors[expert][side] for expert in used), _stack) for side in (0, 1))
        return FactoredLora(inward, outward, self.scaling)


def _stack(*matrices: torch.Tensor) -> torch.Tensor:
    return torch.stack(matrices)


@dataclass(frozen=True)
class ListedExperts:
    """A block of listed experts, called as its ``moe`` (DeepSeek-V3, GLM-4)."""

    block: Any
    linears: dict[str, ExpertLinears]
    dimensions: ClassVar[tuple[int, ...]] = (2, 2, 2)

    def __call__(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the routed experts' weighted sum, (tokens, hidden)."""
        experts = self.block.experts
        return routed(hidden_states, top_k_index, top_k_weights, num_experts=len(experts), expert=self._expert)

    def _expert(self, x: torch.Tensor, groups: Groups) -> torch.Tensor:
        gate, up, down = (self.linears[role] for role in ROLES)
        return down(self.block.experts[0].act_fn(gate(x, groups)) * up(x, groups), groups)

    def ways(self) -> str:
        """How the products run: the base's, and its LoRA's."""
        loras = {role: one.stacked([0]) for role, one in self.linears.items() if one.factors}
        said = [f"{role} {lora.way(self.linears[role].factors[0][0].dtype)}" for role, lora in loras.items()]
        return f"base Linears in a loop; LoRA {', '.join(said)}"


@dataclass(frozen=True)
class RoutedHere(ListedExperts):
    """A block of listed experts that routes in the same forward (Qwen3)."""

    dimensions: ClassVar[tuple[int, ...]] = (3,)

    def __call__(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override] # another method is replaced
        """Return hidden states (batch, tokens, hidden) and router logits.

        ``Qwen3MoeSparseMoeBlock.forward`` (4.57.6) returns the same.
        """
        flat = hidden_states.view(-1, hidden_states.shape[-1])
        router_logits = self.block.gate(flat)
        weights, index = torch.topk(torch.softmax(router_logits, dim=1, dtype=torch.float), self.block.top_k, dim=-1)
        if self.block.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        out = super().__call__(flat, index, weights.to(flat.dtype))
        return out.view(hidden_states.shape), router_logits


def looks_listed(module: Any) -> bool:
    """Whether a module has a list of experts, of a kind that is understood or not."""
    return isinstance(getattr(module, "experts", None), torch.nn.ModuleList)


def replaced_method(block: Any) -> str:
    """Return which method of a block loops over its experts.

    Raises:
        IneligibleError: it is not known how this class routes.
    """
    method, _ = _known(block)
    return method


def read_listed(block: Any) -> ListedExperts:
    """Return the experts of a block as they are now.

    Raises:
        IneligibleError: something here is not understood, or not what the grouped forward does.
    """
    method, expert_class = _known(block)
    for expert in block.experts:
        if not is_class(expert, (type(block).__module__, expert_class)):
            raise IneligibleError(f"an expert is a {type(expert).__name__}")
        check_untouched(expert)
    linears = {role: _read_role([getattr(expert, role) for expert in block.experts], role) for role in ROLES}
    if not any(one.factors for one in linears.values()):
        raise IneligibleError("no LoRA is active")
    return (RoutedHere if method == "forward" else ListedExperts)(block, linears)


def _known(block: Any) -> tuple[str, str]:
    name = type(block).__name__
    for (model_type, block_class), known in BLOCKS.items():
        module = f"transformers.models.{model_type}.modeling_{model_type}"
        if (type(block).__module__, name) == (module, block_class):
            return known
    raise IneligibleError(f"it is not known how {name} routes to its list of experts")


def _read_role(layers: list[Any], role: str) -> ExpertLinears:
    """Return one Linear of every expert; either all have a LoRA, of one rank and scale, or none."""
    found = [_active(layer, role) for layer in layers]
    bases = tuple(getattr(layer, "base_layer", layer) for layer in layers)
    if not any(found):
        return ExpertLinears(bases)
    loras = [(layer, name) for layer, name in zip(layers, found, strict=True) if name]
    if len(loras) < len(layers):
        raise IneligibleError(f"a LoRA is active on {role} of {len(loras)} experts of {len(layers)}")
    factors = tuple((layer.lora_A[name].weight, layer.lora_B[name].weight) for layer, name in loras)
    if len({(a.shape, a.dtype, b.shape, b.dtype) for a, b in factors}) != 1:
        raise IneligibleError(f"the LoRAs on {role} differ in rank or dtype")
    scalings = {float(layer.scaling[name]) for layer, name in loras}
    if len(scalings) != 1:
        raise IneligibleError(f"the LoRAs on {role} differ in scale")
    return ExpertLinears(bases, factors, scalings.pop())


def _active(layer: Any, role: str) -> str | None:
    """Return the one adapter that is active on a Linear, None where there is none."""
    if not hasattr(layer, "base_layer"):
        return None
    if not is_class(layer, *LORA_LINEARS):
        raise IneligibleError(f"{role} is wrapped in {type(layer).__module__}.{type(layer).__name__}")
    check_untouched(layer)
    if layer.disable_adapters:
        raise IneligibleError("adapters are disabled")
    if layer.merged:
        raise IneligibleError(f"{', '.join(layer.merged_adapters)} is merged into {role}")
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) > 1:
        raise IneligibleError(f"{len(active)} adapters are active on {role}")
    if not active:
        return None
    name = str(active[0])
    _check_plain(layer, name, role)
    return name


def _check_plain(layer: Any, name: str, role: str) -> None:
    """Refuse what two small matrices and a scale do not say."""
    factors = (layer.lora_A[name], layer.lora_B[name])
    if not all(is_class(factor, ("torch.nn.modules.linear", "Linear")) and factor.bias is None for factor in factors):
        raise IneligibleError(f"the LoRA on {role} has a bias, or is not two Linears")
    for factor in factors:
        check_untouched(factor)
    if not isinstance(layer.lora_dropout[name], torch.nn.Identity):
        raise IneligibleError(f"the LoRA on {role} has dropout")
    variants = getattr(layer, "lora_variant", {})  # from peft 0.16 on
    if layer.use_dora.get(name) or name in variants or not getattr(layer, "cast_input_dtype_enabled", True):
        raise IneligibleError(f"the LoRA on {role} is a variant (DoRA, say), not plain")
