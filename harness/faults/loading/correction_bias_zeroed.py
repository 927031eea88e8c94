"""The router's correction bias is zero after loading: a buffer that is filled again, or is not read.

It decides which experts are chosen, and only that.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts


def plant(patches: ExitStack) -> None:
    """Zero the correction bias of every router."""
    import torch

    def change(model: Any) -> None:
        for router in parts(model, "e_score_correction_bias"):
            router.e_score_correction_bias = torch.zeros_like(router.e_score_correction_bias)

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="zeroes the correction bias of every router",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "deepseek_v3"},
    plant=plant,
)
