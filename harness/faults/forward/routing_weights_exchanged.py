"""Each of a token's experts gets another one's weight: values and indices that are sorted apart."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Hand the weights out in reverse."""

    def make(original: Any) -> Any:
        def forward(self: Any, hidden_states: Any) -> Any:
            logits, weights, chosen = original(self, hidden_states)
            return logits, weights.flip(-1), chosen

        return forward

    replace(patches, modeling("qwen3_moe").Qwen3MoeTopKRouter, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="gives each of a token's experts another one's weight",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
