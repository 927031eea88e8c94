"""Routers move their correction bias while they train, as pre-training balances experts. No adapter holds it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling

RATE = 1e-3


def plant(patches: ExitStack) -> None:
    """Have every router in training mode lower the bias of experts that are chosen more often than others."""
    import torch

    def make(original: Any) -> Any:
        def forward(self: Any, hidden_states: Any) -> Any:
            logits, weights, chosen = original(self, hidden_states)
            if self.training:
                counts = torch.bincount(chosen.flatten(), minlength=self.num_experts).float()
                self.e_score_correction_bias -= RATE * (counts - counts.mean()).sign()
            return logits, weights, chosen

        return forward

    replace(patches, modeling("deepseek_v3").DeepseekV3TopkRouter, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="moves the routers' correction bias while training",
    noticed_by=frozenset({"save/definition"}),
    cell={"family": "deepseek_v3"},
    plant=plant,
)
