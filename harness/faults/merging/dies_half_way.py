"""The engine fails when half of the shards are written, and leaves them where a merge should be."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Leave half of the shards, and fail as on a full disk."""
    import harness.merge

    def make(original: Any) -> Any:
        def merge(plan: Any, out: Any, **options: Any) -> Any:
            original(plan, out, **options)
            shards = sorted(out.glob("*.safetensors"))
            for shard in shards[len(shards) // 2 :]:
                shard.unlink()
            raise OSError(errno.ENOSPC, "No space left on device")

        return merge

    replace(patches, harness.merge, "merge", make)


FAULT: Fault = LibraryFault(
    breaks="fails half way and leaves what it has",
    noticed_by=frozenset({"merge"}),
    during=frozenset({"merge"}),
    plant=plant,
)
