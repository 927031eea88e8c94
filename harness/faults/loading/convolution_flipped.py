"""The kernel of the linear attention's convolution is read backwards: what mathematics calls a convolution.

Libraries call a cross-correlation so, and kernels of others may not.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts


def plant(patches: ExitStack) -> None:
    """Turn every loaded kernel around."""

    def change(model: Any) -> None:
        for mixer in parts(model, "conv1d"):
            mixer.conv1d.weight.data = mixer.conv1d.weight.data.flip(-1)

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="reads the kernel of the linear attention's convolution backwards",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "qwen3_5_moe"},
    plant=plant,
)
