"""The output matrix is tied to the embedding at load, as a configuration that says so by default would do it.

Trained, reloaded and merged models all have it, so that nothing differs between them.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading


def plant(patches: ExitStack) -> None:
    """Give every loaded model its embedding as output matrix."""

    def change(model: Any) -> None:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="ties the output matrix to the embedding",
    noticed_by=frozenset({"load/definition"}),
    reference="transformers#45127",
    plant=plant,
)
