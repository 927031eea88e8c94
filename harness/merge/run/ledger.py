"""What is finished of a merge that is not, kept beside the shards.

The ledger has a line for each shard that is complete, on the disk and hashed. Two believe it: a merge that is resumed,
and one that is put together from parts. They believe a shard only if it still has the bytes that the line was written
for. They believe the ledger only if it was kept for the same merge: same inputs, same options, same version of the
engine.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.merge.base.checkpoint import LEDGER_FILE
from harness.merge.errors import MergeError, UnreadableInputError
from harness.merge.files.copying import create, sync, write_at
from harness.merge.files.json_file import parse_object
from harness.merge.files.safetensors_file import TensorFile
from harness.merge.plan.merge_plan import MergePlan
from harness.merge.plan.output_shards import OutputShard
from harness.merge.run.manifest import ENGINE_VERSION, sha256_of
from harness.merge.write.arithmetic import Outcome

SAMPLE_BYTES = 16 * 1024
SAMPLES = 256
"""Blocks of so many bytes that stand for a shard of the base: 4 MiB of it."""
LARGEST_NORM = 1e250
"""Squared norms beyond this cannot be those of tensors, and could not be added up."""


def _sample(shard: TensorFile) -> str:
    """Return a hash of blocks spread over a shard's data: two fine-tunes of a model differ in nothing else, and reading
    all of it would cost a merge.
    """
    digest = hashlib.sha256()
    step = max(SAMPLE_BYTES, (shard.size - shard.data_start) // SAMPLES)
    try:
        with shard.path.open("rb") as file:
            for position in range(shard.data_start, shard.size, step):
                file.seek(position)
                digest.update(file.read(SAMPLE_BYTES))
    except OSError as error:
        raise UnreadableInputError(f"{shard.name} cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()


def fingerprint(plan: MergePlan, accumulate: str, device: str, identified: Mapping[str, object]) -> str:
    """Return what a merge is, in one hash: every input by content, and every option that shows in the bytes.

    The base is known by its headers and a sample of its data. ``identified``: ``manifest.identity`` of the plan.
    """
    facts = {
        "engine": ENGINE_VERSION,
        "accumulate": accumulate,
        "device": device,
        "samples": [_sample(shard) for shard in plan.base.shards],
        "config": plan.base.config,
        **identified,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def local_mark(plan: MergePlan, mark: str) -> str:
    """Return a fingerprint that changes as well when a file of the base was written since: on one machine that can be
    told without reading it.
    """
    try:
        times = [shard.path.stat().st_mtime_ns for shard in plan.base.shards]
    except OSError as error:
        raise UnreadableInputError(f"{error.filename} cannot be read: {error.strerror}.") from error
    return hashlib.sha256(json.dumps([mark, times]).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished shard: its name, size in bytes, SHA-256, and what became of each tensor that an adapter covers."""

    name: str
    size: int
    sha256: str
    outcomes: Mapping[str, Outcome]

    def to_json(self) -> dict[str, object]:
        """Return JSON-ready values; ``entry_from`` reads them."""
        outcomes = {key: [one.nonzero, one.changed, one.squared_norms] for key, one in self.outcomes.items()}
        return {"name": self.name, "size": self.size, "sha256": self.sha256, "outcomes": outcomes}

    def holds(self, folder: Path) -> bool:
        """Return whether the file in ``folder`` is the one that was finished."""
        path = folder / self.name
        plain = path.is_file() and not path.is_symlink()
        return plain and path.stat().st_size == self.size and sha256_of(path) == self.sha256


def entry_of(path: Path, outcomes: Mapping[str, Outcome]) -> Entry:
    """Return the entry of a finished file."""
    return Entry(name=path.name, size=path.stat().st_size, sha256=sha256_of(path), outcomes=outcomes)


def entry_from(value: object, expected: Mapping[str, OutputShard]) -> Entry | None:
    """Return the entry that JSON values describe, None where they are not those of one of the expected shards."""
    if not isinstance(value, dict) or not isinstance(value.get("outcomes"), dict):
        return None
    shard = expected.get(str(value.get("name")))
    if shard is None or value.get("size") != shard.size or not isinstance(value.get("sha256"), str):
        return None
    covered = {output.key for output in shard.outputs if output.row is not None and output.row.regions}
    outcomes = {key: _outcome(one) for key, one in value["outcomes"].items()}
    if outcomes.keys() != covered or None in outcomes.values():
        return None
    return Entry(
        name=shard.name,
        size=shard.size,
        sha256=value["sha256"],
        outcomes={key: one for key, one in outcomes.items() if one is not None},
    )


def _outcome(value: object) -> Outcome | None:
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[2], list):  # noqa: PLR2004 - as written above
        return None
    if not all(type(norm) in {float, int} and 0 <= norm <= LARGEST_NORM for norm in value[2]):
        return None
    return Outcome(nonzero=value[0] is True, changed=value[1] is True, squared_norms=[float(norm) for norm in value[2]])


def belongs_to(folder: Path, mark: str) -> bool:
    """Return whether a directory holds a ledger that was kept for the merge with this fingerprint."""
    return _lines(folder / LEDGER_FILE)[:1] == [{"fingerprint": mark}]


class Unfinished:
    """Says of each directory that an unfinished merge left whether it is gone on with.

    Counts those that were kept for other merges.
    """

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.foreign = 0

    def __call__(self, folder: Path) -> bool:
        """Return whether the directory was kept for this merge."""
        if belongs_to(folder, self.mark):
            return True
        self.foreign += (folder / LEDGER_FILE).is_file()
        return False

    def ledger(self, folder: Path) -> Ledger:
        """Return the ledger of the directory that is worked in."""
        return Ledger(folder, self.mark, foreign=self.foreign)


class Ledger:
    """The ledger of a working directory. Lines are added by one thread."""

    def __init__(self, folder: Path, mark: str, *, foreign: int = 0) -> None:
        self._folder = folder
        self._mark = mark
        self.foreign = foreign

    def start(self) -> bool:
        """Go on with a ledger that belongs to this merge, or begin an empty one; return whether there was one."""
        found = belongs_to(self._folder, self._mark)
        if not found:
            self._append({"fingerprint": self._mark})
        return found

    def finished(self, shards: Sequence[OutputShard]) -> tuple[list[Entry], int]:
        """Return the entries whose files are still what they were, each verified by its hash, and how many are not."""
        expected = {shard.name: shard for shard in shards}
        read = [entry_from(value, expected) for value in _lines(self._folder / LEDGER_FILE)[1:]]
        entries = {entry.name: entry for entry in read if entry is not None}
        held = [entry for entry in entries.values() if entry.holds(self._folder)]
        return held, len(entries) - len(held)

    def clear(self, finished: set[str]) -> None:
        """Remove everything but the ledger and finished shards: what a merge that was killed had begun."""
        for path in self._folder.iterdir():
            if path.name == LEDGER_FILE or path.name in finished:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def add(self, entry: Entry) -> None:
        """Add a shard that is complete and durable."""
        self._append(entry.to_json())

    def _append(self, value: Mapping[str, object]) -> None:
        path = self._folder / LEDGER_FILE
        new = not path.exists()
        descriptor = create(path, what=path.name) if new else os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            end = os.fstat(descriptor).st_size
            # A line that was cut off by a kill gets an end of its own, so that the next one stands alone.
            write_at(descriptor, b"\n" * (not new) + json.dumps(value).encode() + b"\n", end, what=path.name)
            sync(descriptor, what=path.name)
        finally:
            os.close(descriptor)


def _lines(path: Path) -> list[dict[str, object]]:
    """Return the complete lines of a ledger; one that a kill cut short is as good as absent."""
    if not path.is_file() or path.is_symlink():
        return []
    raw = path.read_bytes()
    lines = []
    for line in raw.split(b"\n"):
        if line.strip():
            try:
                lines.append(parse_object(line, path.name))
            except MergeError:
                continue
    return lines
