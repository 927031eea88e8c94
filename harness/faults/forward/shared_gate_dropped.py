"""The shared expert is added whole, where its own gate says how much of it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Add the shared expert without its gate."""

    def make(_original: Any) -> Any:
        def forward(self: Any, hidden_states: Any) -> Any:
            flat = hidden_states.flatten(0, -2)
            _, weights, chosen = self.gate(flat)
            return (self.experts(flat, chosen, weights) + self.shared_expert(flat)).view_as(hidden_states)

        return forward

    replace(patches, modeling("qwen3_5_moe").Qwen3_5MoeSparseMoeBlock, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="adds the shared expert without its gate",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "qwen3_5_moe"},
    plant=plant,
)
