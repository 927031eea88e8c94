"""The bias of the linear attention's decay is zero after loading: a parameter whose name has no ``.weight``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts


def plant(patches: ExitStack) -> None:
    """Zero the bias of every linear attention's time step."""
    import torch

    def change(model: Any) -> None:
        for mixer in parts(model, "dt_bias"):
            mixer.dt_bias.data = torch.zeros_like(mixer.dt_bias)

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="drops the bias of the linear attention's decay",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "qwen3_5_moe"},
    plant=plant,
)
