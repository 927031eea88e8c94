"""The router takes a softmax before it chooses and another one after: two orders of the same steps, mixed.

Where weights are normalised, either order alone is the other.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Take a softmax of the weights that were chosen."""

    def make(original: Any) -> Any:
        def forward(self: Any, hidden_states: Any) -> Any:
            logits, weights, chosen = original(self, hidden_states)
            return logits, weights.softmax(-1), chosen

        return forward

    replace(patches, modeling("qwen3_moe").Qwen3MoeTopKRouter, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="takes a second softmax of the router's weights",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
