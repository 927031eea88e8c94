"""The process is killed while it merges, as the kernel does when memory runs out. Nothing catches that."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Kill this process when the engine begins to publish."""
    from harness.merge.run import engine

    def make(_original: Any) -> Any:
        def publish(*_args: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        return publish

    replace(patches, engine, "publish", make)


FAULT: Fault = LibraryFault(
    breaks="kills the process that merges",
    noticed_by=frozenset({"merge"}),
    during=frozenset({"merge"}),
    plant=plant,
)
