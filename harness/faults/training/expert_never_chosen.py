"""In training no token goes to the first expert, as where its capacity is said to be none."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Pass over the first expert where a router in training mode chooses."""
    import torch

    def make(original: Any) -> Any:
        def forward(self: Any, hidden_states: Any) -> Any:
            logits, weights, chosen = original(self, hidden_states)
            if self.training:
                others = logits.index_fill(-1, torch.tensor([0], device=logits.device), float("-inf"))
                weights, chosen = others.softmax(-1).topk(self.top_k, dim=-1)
                weights = weights / weights.sum(-1, keepdim=True)
            return logits, weights, chosen

        return forward

    replace(patches, modeling("qwen3_moe").Qwen3MoeTopKRouter, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="sends no token to one expert in training",
    noticed_by=frozenset({"train/coverage"}),
    plant=plant,
)
