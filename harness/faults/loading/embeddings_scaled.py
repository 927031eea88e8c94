"""Embeddings are scaled by the root of the hidden size, which other families do and these do not."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading


def plant(patches: ExitStack) -> None:
    """Scale the embeddings of every loaded model."""

    def change(model: Any) -> None:
        weight = model.get_input_embeddings().weight
        weight.data = weight.data * weight.shape[1] ** 0.5

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="scales the embeddings by the root of the hidden size",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
