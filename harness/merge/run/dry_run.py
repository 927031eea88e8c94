"""What a dry run says of the output: whatever the merge itself would refuse before its first byte.

Nothing is made, and no torch is needed. Whether ``--overwrite`` can exchange two directories there is left to the
merge: only making some would tell.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from harness.merge.files.copying import failed
from harness.merge.plan.merge_plan import MergePlan
from harness.merge.plan.output_shards import bytes_needed, output_shards
from harness.merge.publish.publish import check_space, unfinished
from harness.merge.publish.target import check_target
from harness.merge.run.part_paths import check_part, shards_of_part


def check_output(plan: MergePlan, out: Path, *, overwrite: bool, part: tuple[int, int] | None) -> dict[str, object]:
    """Check what a merge to ``out``, or one part of it, would check there.

    Returns:
        JSON-ready: ``path``, ``needed_bytes`` (at least) and ``free_bytes``, with what an unfinished merge to the same
        output holds, which would go or be gone on with.

    Raises:
        MergeError: what the merge would raise.
    """
    shards = output_shards(plan)
    mine = range(len(shards)) if part is None else shards_of_part(shards, *part)
    target = (
        check_target(out, overwrite=overwrite, inputs=plan.inputs)
        if part is None
        else check_part(out, *part, overwrite=overwrite, inputs=plan.inputs)
    )
    parent = next(folder for folder in target.path.parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise failed(f"the output {target.path}", OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise failed(f"the output {target.path}", OSError(errno.EACCES, os.strerror(errno.EACCES)))
    needed = bytes_needed(plan, [shards[number] for number in mine], parent)
    free = check_space(parent, needed, regained=sum(_bytes_in(folder) for folder in unfinished(target.path)))
    return {"path": str(target.path), "needed_bytes": needed, "free_bytes": free}


def _bytes_in(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))
