"""The weights of a token's experts do not sum to one: a setting of the configuration that is not read."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts


def plant(patches: ExitStack) -> None:
    """Have no router normalise its weights."""

    def change(model: Any) -> None:
        for router in parts(model, "norm_topk_prob", "top_k"):
            router.norm_topk_prob = False

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="does not normalise the weights of a token's experts",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
