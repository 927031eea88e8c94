"""Each token goes to one expert fewer than the configuration says."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts


def plant(patches: ExitStack) -> None:
    """Have every router choose one expert fewer."""

    def change(model: Any) -> None:
        for router in parts(model, "top_k", "num_experts"):
            router.top_k -= 1

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="chooses one expert fewer for each token",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
