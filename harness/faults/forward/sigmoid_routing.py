"""Experts are weighed by sigmoids where the architecture means a softmax. The same ones are chosen."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Weigh what was chosen by its sigmoid, normalised."""

    def make(original: Any) -> Any:
        def forward(self: Any, hidden_states: Any) -> Any:
            logits, _, chosen = original(self, hidden_states)
            weights = logits.sigmoid().gather(-1, chosen)
            return logits, weights / weights.sum(-1, keepdim=True), chosen

        return forward

    replace(patches, modeling("qwen3_moe").Qwen3MoeTopKRouter, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="weighs experts by sigmoids",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
