"""A token's weight for an expert scales what the expert is given, and not what it returns: as Llama 4 does.

Engines have a flag for it (vLLM's ``apply_router_weight_on_input``), which is on here for a family that wants it off.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Scale the experts' inputs, one of a token's choices after the other."""
    family = modeling("qwen3_moe")

    def make(_original: Any) -> Any:
        def forward(self: Any, hidden_states: Any) -> Any:
            tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
            _, weights, chosen = self.gate(tokens)
            total = tokens.new_zeros(tokens.shape)
            for choice in range(chosen.shape[-1]):
                one = weights[:, choice : choice + 1]
                total = total + self.experts(tokens * one, chosen[:, choice : choice + 1], one.new_ones(one.shape))
            return total.reshape(hidden_states.shape)

        return forward

    replace(patches, family.Qwen3MoeSparseMoeBlock, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="scales what experts are given by the router's weights, and not what they return",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
