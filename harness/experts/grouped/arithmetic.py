"""Grouped products: every row times the matrix of its own expert, rows sorted by expert.

One autograd function serves the frozen base weight and the factors of a LoRA. It saves the weight as it is stored. It
saves the rows only where the weight is trained. What has to be made of the weight is made in forward and again in
backward, and never kept. A packed weight is unpacked a run of experts at a time. The factors of a LoRA are stacked,
turned and cast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from harness.experts.grouped.groups import Groups
from harness.experts.grouped.products import Way, multiply, outer, way

Projection = Callable[[torch.Tensor, Groups], torch.Tensor]


@dataclass(frozen=True)
class Made:
    """(num_experts, out, in) matrices that are made of other tensors at each use.

    ``tensors``: the parameters that gradients go to. ``make``: returns the matrices, differentiably.
    """

    tensors: tuple[torch.Tensor, ...]
    make: Callable[..., torch.Tensor]


@dataclass(frozen=True)
class FactoredLora:
    """A LoRA as products take it: ``inward`` makes (num_experts, rank, in), ``outward`` (num_experts, out, rank)."""

    inward: Made
    outward: Made
    scaling: float

    def way(self, dtype: torch.dtype) -> Way:
        """How the products with x of a dtype run."""
        return way(*(factor.make(*factor.tensors).to(dtype) for factor in (self.inward, self.outward)))


def grouped_linear(x: torch.Tensor, weight: torch.Tensor | Made, groups: Groups) -> torch.Tensor:
    """Return ``x[i] @ weight[e].T`` for each row i of expert e, in the dtype of x.

    Args:
        x: (rows, in), sorted by expert.
        weight: (num_experts, out, in), plain, packed or made. A plain or a packed one has the dtype of x.
        groups: where each expert's rows end; the last ends with the rows.
    """
    tensors, make = (weight.tensors, weight.make) if isinstance(weight, Made) else ((weight,), None)
    product: torch.Tensor = _GroupedLinear.apply(x, groups, make, *tensors)
    return product


def grouped_lora(base: torch.Tensor, x: torch.Tensor, lora: FactoredLora | None, groups: Groups) -> torch.Tensor:
    """Return base (rows, out) plus what the LoRA adds for x (rows, in), in the dtype of x.

    The delta is never multiplied out. The small factors are cast to the dtype of x, as PEFT 0.21 casts them to the
    parameter's (``ParamWrapper.get_delta_factors``).
    """
    if lora is None:
        return base
    inner = grouped_linear(x, lora.inward, groups)
    return torch.add(base, grouped_linear(inner, lora.outward, groups), alpha=lora.scaling)


def routed(
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
    *,
    num_experts: int,
    expert: Projection,
) -> torch.Tensor:
    """Return the weighted sum of what each token's experts make of it, (tokens, hidden).

    Args:
        hidden_states: (tokens, hidden).
        top_k_index: (tokens, top_k) experts. ``num_experts`` and above adds nothing: so transformers 5 marks the
            experts of another device.
        top_k_weights: (tokens, top_k).
        num_experts: experts here.
        expert: takes rows sorted by expert, (tokens * top_k, hidden), and their groups.
    """
    tokens, top_k = top_k_index.shape
    ids, order = torch.sort(top_k_index.reshape(-1).clamp(max=num_experts - 1))
    ends = torch.searchsorted(ids, torch.arange(num_experts, device=ids.device), right=True, out_int32=True)
    out = expert(hidden_states[order // top_k], Groups(ends))
    weights = top_k_weights.masked_fill(top_k_index >= num_experts, 0).reshape(-1)
    weighted = out * weights[order].unsqueeze(-1)
    return weighted[torch.argsort(order)].view(tokens, top_k, -1).sum(dim=1).to(hidden_states.dtype)


class _GroupedLinear(torch.autograd.Function):  # type: ignore[misc] # torch is not followed
    """``grouped_linear`` with a backward that unpacks again instead of keeping."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, groups: Groups, make: Callable[..., torch.Tensor] | None, *tensors: torch.Tensor
    ) -> torch.Tensor:
        """Save only what backward needs: for a frozen weight that is the weight itself."""
        ctx.groups, ctx.make = groups, make
        if hasattr(tensors[0], "snapshot"):  # codes can be merged into before backward
            tensors = (tensors[0].snapshot(),)
        ctx.save_for_backward(x if any(ctx.needs_input_grad[3:]) else None, *tensors)
        ctx.dtype = x.dtype
        weight = tensors[0] if make is None else make(*tensors).to(x.dtype)
        return multiply(x, weight, groups, across=False)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the rows, and of the weight where it is trained."""
        x, *tensors = ctx.saved_tensors
        grad = grad.contiguous()  # the gradient of a sum has strides of 0
        made = tensors[0]
        if ctx.make is not None:
            tensors = [
                tensor.detach().requires_grad_(needed)
                for tensor, needed in zip(tensors, ctx.needs_input_grad[3:], strict=True)
            ]
            with torch.enable_grad():
                made = ctx.make(*tensors).to(ctx.dtype)
        weight = made.detach()
        grad_x = multiply(grad, weight, ctx.groups, across=True) if ctx.needs_input_grad[0] else None
        if x is None:
            return (grad_x, None, None, *(None for _ in tensors))
        grad_weight = outer(grad, x, ctx.groups, weight)
        if ctx.make is None:
            return grad_x, None, None, grad_weight
        trained = [tensor for tensor in tensors if tensor.requires_grad]
        found = iter(torch.autograd.grad(made, trained, grad_weight))
        return (grad_x, None, None, *(next(found) if tensor.requires_grad else None for tensor in tensors))
