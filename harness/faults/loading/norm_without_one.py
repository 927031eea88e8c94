"""Norms scale by their weight where the architecture means one plus it: code of another family."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Leave the one out."""

    def make(original: Any) -> Any:
        def forward(self: Any, x: Any) -> Any:
            normed = original(self, x)
            return normed / (1 + self.weight) * self.weight

        return forward

    replace(patches, modeling("qwen3_5_moe").Qwen3_5MoeRMSNorm, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="scales norms by their weight, for one plus it",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "qwen3_5_moe"},
    plant=plant,
)
