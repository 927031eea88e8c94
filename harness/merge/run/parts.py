"""One merge over several machines: each writes some of the output's shards into a part, and one puts them together.

A part is a directory beside the output, ``OUT.part-I-of-N``. It is published as any output is: complete or not at all.
What is put together is checked first. Every part has to be there, made for the same merge (``ledger.fingerprint``), and
every shard has to have the bytes that its part says.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from harness.merge.errors import IncompleteMergeError, OutputExistsError, UsageError
from harness.merge.files.copying import copy_file, failed, write_file
from harness.merge.files.json_file import read_object
from harness.merge.plan.merge_plan import MergePlan
from harness.merge.plan.output_shards import OutputShard, output_shards
from harness.merge.publish.publish import publish, working_directory
from harness.merge.publish.target import PART_FILE, check_target
from harness.merge.run.engine import (
    ComputeOptions,
    Progress,
    Written,
    finish,
    kept_work,
    prepared,
    write_shards,
)
from harness.merge.run.ledger import Entry, Unfinished, entry_from, entry_of, fingerprint, local_mark
from harness.merge.run.manifest import identity
from harness.merge.run.part_paths import check_part, find_parts, part_path, shards_of_part
from harness.merge.run.report import MergeReport, PartReport

NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
"""What ``link`` says where a file system has no hard links."""


def run_part(
    plan: MergePlan,
    out: Path,
    *,
    part: int,
    parts: int,
    overwrite: bool,
    resume: bool,
    compute: ComputeOptions,
    progress: Progress | None,
) -> PartReport:
    """Write one part; see ``harness.merge.merge_part``."""
    shards = output_shards(plan)
    mine = shards_of_part(shards, part, parts)
    place = part_path(out, part, parts)
    mark = fingerprint(plan, compute.accumulate, compute.device, identity(plan))
    if resume and not overwrite and (place / PART_FILE).is_file():
        _read(place, mark, shards)
        raise OutputExistsError(
            f"part {part} of {parts} is complete already: {place}.", "Nothing is left to do for it."
        )
    target = check_part(out, part, parts, overwrite=overwrite, inputs=plan.inputs)
    local = local_mark(plan, f"{mark} {part}/{parts}")
    unfinished = Unfinished(local) if resume else None
    with prepared(plan, compute) as ready, kept_work(resume=resume), working_directory(target, keep=unfinished) as work:
        ledger = None if unfinished is None else unfinished.ledger(work)
        done = write_shards(ready, shards, mine, work, ledger, progress)
        entries = [_entry(shards[number], done, work) for number in mine]
        said = {"fingerprint": mark, "part": part, "parts": parts, "shards": [entry.to_json() for entry in entries]}
        write_file(work / PART_FILE, json.dumps(said).encode())
        publish(work, target)
    return PartReport(
        path=target.path,
        part=part,
        parts=parts,
        shards=tuple(entry.name for entry in entries),
        bytes_written=done.written,
        resumed=done.resumed,
    )


def _entry(shard: OutputShard, done: Written, work: Path) -> Entry:
    mine = {output.key: done.outcomes[output.key] for output in shard.outputs if output.key in done.outcomes}
    return entry_of(work / shard.name, mine)


def _read(folder: Path, mark: str, shards: Sequence[OutputShard]) -> list[Entry]:
    """Return what a part says it holds.

    Raises:
        UsageError: it was written for another merge, or says something that cannot be.
    """
    said = read_object(folder / PART_FILE)
    if said.get("fingerprint") != mark:
        raise UsageError(
            f"{folder.name} was written from other inputs or with other options than were given now.",
            "Give the base, the adapter and the options that the parts were written with.",
        )
    names = {shard.name: shard for shard in shards}
    listed_shards = said.get("shards")
    entries = [entry_from(value, names) for value in listed_shards] if isinstance(listed_shards, list) else []
    if not entries or None in entries:
        raise UsageError(f"{folder.name}/{PART_FILE} does not describe shards of this merge.", "Write the part again.")
    return [entry for entry in entries if entry is not None]


def run_assemble(
    plan: MergePlan, out: Path, *, overwrite: bool, compute: ComputeOptions, progress: Progress | None
) -> MergeReport:
    """Check all parts and publish what they make; see ``harness.merge.assemble``."""
    target = check_target(out, overwrite=overwrite, inputs=plan.inputs)
    shards = output_shards(plan)
    folders = find_parts(target.path, len(shards))
    facts = identity(plan)
    mark = fingerprint(plan, compute.accumulate, compute.device, facts)
    held = [(folder, entry) for folder in folders for entry in _read(folder, mark, shards)]
    names = [entry.name for _, entry in held]
    if sorted(names) != sorted(shard.name for shard in shards):
        raise UsageError("the parts do not hold every shard of the output once.", "Write the parts again.")
    total, done = sum(entry.size for _, entry in held), 0
    with working_directory(target) as work:
        for folder, entry in held:
            if not entry.holds(folder):
                raise IncompleteMergeError(
                    f"{folder.name}/{entry.name} is not what was written: its size or its hash has changed.",
                    f"Remove {folder.name} and write or copy that part again.",
                )
            _link(folder / entry.name, work / entry.name)
            done += entry.size
            if progress is not None:
                progress(done, total)
        outcomes = {key: outcome for _, entry in held for key, outcome in entry.outcomes.items()}
        whole = Written(outcomes=outcomes, written=total, decoded=0)
        report = finish(plan, shards, whole, work, target, accumulate=compute.accumulate, facts=facts)
    # The output is there; parts that cannot be removed are only in the way.
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return report


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or where there are no hard links a copy."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise failed(target.name, error) from error
        copy_file(source, target, what=source.name)
