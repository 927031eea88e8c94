"""A block returns what its routed experts made, without the shared one."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Return the routed experts' sum alone."""

    def make(_original: Any) -> Any:
        def forward(self: Any, hidden_states: Any) -> Any:
            _, weights, chosen = self.gate(hidden_states)
            return self.experts(hidden_states.flatten(0, -2), chosen, weights).view_as(hidden_states)

        return forward

    replace(patches, modeling("glm4_moe").Glm4MoeMoE, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="drops the shared expert",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "glm4_moe"},
    plant=plant,
)
