"""The merged model knows no token that ends an answer: generation_config.json was not read (mergekit#275)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading


def plant(patches: ExitStack) -> None:
    """Take the stop tokens out of the loaded settings."""

    def change(model: Any) -> None:
        model.generation_config.eos_token_id = None

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="loads the merged model without its stop tokens",
    noticed_by=frozenset({"compare/samples"}),
    during=frozenset({"reload-merged"}),
    plant=plant,
    reference="mergekit#275",
)
