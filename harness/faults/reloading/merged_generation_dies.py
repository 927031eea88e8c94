"""The merged model loads and says what it should, and cannot generate."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Have generation raise."""
    from transformers import GenerationMixin

    def make(_original: Any) -> Any:
        def generate(*_args: Any, **_kwargs: Any) -> Any:
            raise ValueError("the generation configuration of the merge says what cannot be")

        return generate

    replace(patches, GenerationMixin, "generate", make)


FAULT: Fault = LibraryFault(
    breaks="makes the reloaded merge's generation raise",
    noticed_by=frozenset({"generate-merged"}),
    plant=plant,
    during=frozenset({"reload-merged"}),
)
