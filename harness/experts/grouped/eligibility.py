"""What must hold of a module or a weight before another forward may stand in for its own."""

from __future__ import annotations

from typing import Any

import torch

from harness.experts.errors import IneligibleError
from harness.experts.grouped.products import is_packed

COMPUTED_IN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
STACKED = 3
"""Dimensions of a weight of all experts."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_class(module: Any, *kinds: tuple[str, str]) -> bool:
    """Whether a module is of exactly one of these classes, (module, name). A subclass may do anything.

    No class is imported.
    """
    return (type(module).__module__, type(module).__name__) in kinds


def check_untouched(module: Any) -> None:
    """Refuse a module whose call does more than its class's forward.

    The grouped forward does not call the module, so whatever else a call does would be lost.

    Raises:
        IneligibleError: it has hooks, or a forward of its own (accelerate's offloading sets both).
    """
    kind = type(module).__name__
    if "forward" in vars(module):
        raise IneligibleError(f"{kind} has a forward of its own")
    if any(getattr(module, hooks) for hooks in HOOKS):
        raise IneligibleError(f"{kind} has hooks")


def check_weight(name: str, weight: torch.Tensor, num_experts: int) -> None:
    """Refuse a weight that is no frozen stack of the experts' matrices.

    Raises:
        IneligibleError: it is trained, sharded, of a dtype that nothing is computed in, or of another shape.
    """
    if type(weight) not in (torch.Tensor, torch.nn.Parameter) and not is_packed(weight):
        raise IneligibleError(f"{name} is a {type(weight).__name__}")
    if weight.ndim != STACKED or weight.shape[0] != num_experts:
        raise IneligibleError(
            f"{name} has shape {tuple(weight.shape)}, not one matrix for each of {num_experts} experts"
        )
    if weight.dtype not in COMPUTED_IN:
        raise IneligibleError(f"{name} is {weight.dtype}")
    if weight.requires_grad:
        raise IneligibleError(f"{name} is trained itself")
