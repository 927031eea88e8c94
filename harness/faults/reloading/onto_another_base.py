"""The adapter is loaded onto another revision of its base, whose embedding was trained on a little."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading

SHARE = 1.001


def plant(patches: ExitStack) -> None:
    """Make the embedding of the base that the adapter is loaded onto a thousandth larger."""

    def change(model: Any) -> None:
        model.get_input_embeddings().weight.data *= SHARE

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="loads the adapter onto a base of another revision",
    noticed_by=frozenset({"reload-adapter/adapter_reload"}),
    during=frozenset({"reload-adapter"}),
    plant=plant,
)
