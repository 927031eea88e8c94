"""One weight is initialised again after it was loaded, and nothing says so.

Loaders fill what a checkpoint lacks, and mark what they have loaded. A mark that is lost makes noise of a weight.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts


def plant(patches: ExitStack) -> None:
    """Fill the last attention's output matrix as a new model's."""
    import torch

    def change(model: Any) -> None:
        weight = parts(model, "o_proj")[-1].o_proj.weight
        weight.data = torch.empty_like(weight).normal_(std=model.config.get_text_config().initializer_range)

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="initialises one loaded weight again",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
