"""The router reads its input in bfloat16, where the architecture asks for float32. Near choices go another way."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Round what every router reads."""
    import torch

    def make(original: Any) -> Any:
        def forward(self: Any, hidden_states: Any) -> Any:
            return original(self, hidden_states.to(torch.bfloat16).to(hidden_states.dtype))

        return forward

    replace(patches, modeling("deepseek_v3").DeepseekV3TopkRouter, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="rounds the router's input to bfloat16",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "deepseek_v3"},
    plant=plant,
)
