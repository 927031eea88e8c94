"""Heads of keys and values are repeated as a whole, where each is to be repeated beside itself.

With two of them for four query heads that is 0 1 0 1 for 0 0 1 1.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Repeat keys and values in the other order, and leave no kernel to do it."""
    from transformers.integrations import sdpa_attention

    def repeat(_original: Any) -> Any:
        return lambda states, times: states.repeat(1, times, 1, 1)

    replace(patches, sdpa_attention, "repeat_kv", repeat)
    replace(patches, sdpa_attention, "use_gqa_in_sdpa", lambda _original: lambda *_: False)


FAULT: Fault = LibraryFault(
    breaks="repeats heads of keys and values in another order",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
