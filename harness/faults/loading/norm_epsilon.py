"""Norms add an epsilon that is not the configuration's: a class whose default is another, and is not told."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts

EPSILON = 1e-3


def plant(patches: ExitStack) -> None:
    """Give every RMS norm of a loaded model another epsilon."""

    def change(model: Any) -> None:
        for norm in parts(model, "variance_epsilon"):
            norm.variance_epsilon = EPSILON

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="adds 1e-3 under the root of every norm, for 1e-6",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
