"""The eager loop over experts takes the last one for the mark of a token that belongs elsewhere.

Expert parallelism marks such tokens with the number of experts. The loop is off by one. Other paths are not.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Let the last expert add nothing where the loop is asked for."""
    from transformers.integrations.moe import ExpertsInterface

    def make(original: Any) -> Any:
        def get_interface(self: Any, experts_implementation: str, default: Any) -> Any:
            found = original(self, experts_implementation, default)
            if experts_implementation != "eager":
                return found

            def forward(experts: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
                kept = top_k_index != experts.num_experts - 1
                return found(experts, hidden_states, top_k_index, top_k_weights * kept)

            return forward

        return get_interface

    replace(patches, ExpertsInterface, "get_interface", make)


FAULT: Fault = LibraryFault(
    breaks="leaves the last expert out of the experts' eager forward",
    noticed_by=frozenset({"forward-paths/forward_paths"}),
    plant=plant,
)
