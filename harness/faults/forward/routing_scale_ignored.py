"""Routed experts are not scaled up against the shared one: a factor of the configuration that is not used."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts


def plant(patches: ExitStack) -> None:
    """Give every router a factor of one."""

    def change(model: Any) -> None:
        for router in parts(model, "routed_scaling_factor"):
            router.routed_scaling_factor = 1.0

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="ignores the factor of the routed experts",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "deepseek_v3"},
    plant=plant,
)
