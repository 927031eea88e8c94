"""Experts are chosen among all, where the architecture chooses among the best groups."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts


def plant(patches: ExitStack) -> None:
    """Have every router keep all groups."""

    def change(model: Any) -> None:
        for router in parts(model, "topk_group", "num_group"):
            router.topk_group = router.num_group

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="chooses experts among all groups",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "deepseek_v3"},
    plant=plant,
)
