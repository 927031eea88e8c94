"""Keys are rotated by the position before theirs, queries by their own: positions that are counted twice.

Were both shifted alike nothing would differ, because only their distance counts.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Rotate every key as the token before it."""

    def make(original: Any) -> Any:
        def rotate(query: Any, key: Any, cos: Any, sin: Any, *args: Any, **kwargs: Any) -> Any:
            rotated, _ = original(query, key, cos, sin, *args, **kwargs)
            _, shifted = original(query, key, cos.roll(1, dims=1), sin.roll(1, dims=1), *args, **kwargs)
            return rotated, shifted

        return rotate

    replace(patches, modeling("qwen3_moe"), "apply_rotary_pos_emb", make)


FAULT: Fault = LibraryFault(
    breaks="rotates every key by the position before its own",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
