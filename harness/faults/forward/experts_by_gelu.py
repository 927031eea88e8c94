"""Experts use a GELU where the configuration says SiLU: an activation that is written into the code."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts


def plant(patches: ExitStack) -> None:
    """Give the experts of every loaded model another activation."""
    import torch

    def change(model: Any) -> None:
        for experts in parts(model, "gate_up_proj", "act_fn"):
            experts.act_fn = torch.nn.GELU()

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="replaces the experts' SiLU by GELU",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
