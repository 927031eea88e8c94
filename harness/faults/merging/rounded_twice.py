"""The engine rounds the sum to half precision first, and then to the bf16 that it stores.

Values that the first rounding moves to the middle of two bf16 go the wrong way in the second.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Round sums to float16 before they are stored."""
    from harness.merge.write import arithmetic

    def make(original: Any) -> Any:
        def round_into(result: Any, total: Any) -> None:
            original(result, total.half().float())

        return round_into

    replace(patches, arithmetic, "round_into", make)


FAULT: Fault = LibraryFault(
    breaks="rounds what it merges twice",
    noticed_by=frozenset({"compare/exact"}),
    cell={"dtype": "bf16"},
    during=frozenset({"merge"}),
    plant=plant,
)
