"""Sharing an output out to several machines: which shards a part holds, and where the parts lie; needs no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from harness.merge.errors import SHOWN, UsageError, counted, listed
from harness.merge.plan.output_shards import OutputShard
from harness.merge.publish.publish import glob_escape
from harness.merge.publish.target import Target, check_apart, check_target, real_path


def part_path(out: Path, part: int, parts: int) -> Path:
    """Return the directory of part ``part`` (from 1) of ``parts``."""
    path = real_path(out)
    return path.with_name(f"{path.name}.part-{part}-of-{parts}")


def check_part(out: Path, part: int, parts: int, *, overwrite: bool, inputs: tuple[Path, ...]) -> Target:
    """Return where a part is published; what the parts are for has to be a place where they can be put together.

    Raises:
        MergeError: as ``check_target`` does of the part, and of an output that overlaps an input.
    """
    check_apart(real_path(out), inputs)
    return check_target(part_path(out, part, parts), overwrite=overwrite, inputs=inputs)


def shards_of_part(shards: Sequence[OutputShard], part: int, parts: int) -> list[int]:
    """Return the positions of a part's shards, dealt out in turn: shards of a checkpoint are about equal in size.

    Raises:
        UsageError: there is no such part, or more parts than shards.
    """
    if not 1 <= part <= parts:
        raise UsageError(f"there is no part {part} of {parts}.", "Count parts from 1: --shard 1/4 to --shard 4/4.")
    if parts > len(shards):
        raise UsageError(
            f"the base has {counted(len(shards), 'shard')}, which cannot be shared out to {parts}.", "Use fewer parts."
        )
    return list(range(part - 1, len(shards), parts))


def find_parts(out: Path, shards: int) -> list[Path]:
    """Return the directories of all parts, in order.

    Raises:
        UsageError: none is there, some are missing, or there are parts of two divisions.
    """
    pattern = re.compile(re.escape(out.name) + r"\.part-([1-9]\d{0,8})-of-([1-9]\d{0,8})", re.ASCII)
    found = [(path, pattern.fullmatch(path.name)) for path in out.parent.glob(f"{glob_escape(out.name)}.part-*")]
    numbers = {
        (int(match[2]), int(match[1])): path for path, match in found if match is not None and not path.is_symlink()
    }
    divisions = sorted({parts for parts, _ in numbers})
    if len(divisions) != 1:
        kinds = " and ".join(f"into {parts}" for parts in divisions[:SHOWN])
        said = f"there are parts of {len(divisions)} divisions ({kinds})" if divisions else "there are no parts"
        raise UsageError(
            f"beside {out.name} {said}, where those of one are needed.",
            "Write them with --shard 1/N to --shard N/N and the same --out, and remove those that are not meant.",
        )
    parts = divisions[0]
    if parts > shards:
        raise UsageError(f"the base has {counted(shards, 'shard')}, which cannot have been shared out to {parts}.")
    if missing := [part for part in range(1, parts + 1) if (parts, part) not in numbers]:
        raise UsageError(
            f"of {parts} parts of {out.name}, these are missing: {listed(str(part) for part in missing)}.",
            f"Write them with --shard {missing[0]}/{parts} and so on, or copy them here.",
        )
    return [numbers[parts, part] for part in range(1, parts + 1)]
