"""Samples are one token short: a length that counts one token of the prompt twice."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Stop one token before the length that was asked for."""
    from transformers import MaxLengthCriteria

    def make(original: Any) -> Any:
        def init(self: Any, max_length: int, *args: Any, **kwargs: Any) -> None:
            original(self, max_length - 1, *args, **kwargs)

        return init

    replace(patches, MaxLengthCriteria, "__init__", make)


FAULT: Fault = LibraryFault(
    breaks="stops one token early",
    noticed_by=frozenset({"generate/generation"}),
    plant=plant,
)
