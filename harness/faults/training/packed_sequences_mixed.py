"""Sequences that are packed into a row attend to those before them.

The mask that keeps them apart is made of the positions. An attention that does not look at these makes none.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Find no second sequence in any row."""
    from transformers import masking_utils

    def make(_original: Any) -> Any:
        def find_packed_sequence_indices(_position_ids: Any) -> None:
            return None

        return find_packed_sequence_indices

    replace(patches, masking_utils, "find_packed_sequence_indices", make)


FAULT: Fault = LibraryFault(
    breaks="lets packed sequences attend to those before them",
    noticed_by=frozenset({"train/objective", "train/gradient"}),
    cell={"recipe": "lora-packed"},
    plant=plant,
)
