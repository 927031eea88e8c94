"""The merge itself, readable top to bottom: check, write the shards, copy the rest, count, publish by one rename."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from harness.merge.base.checkpoint import MANIFEST_FILE
from harness.merge.errors import IncompleteMergeError, MergeError, OutputExistsError, UsageError
from harness.merge.files.copying import copy_file, write_file
from harness.merge.files.input_files import InputFiles
from harness.merge.plan.estimate import default_threads, estimate
from harness.merge.plan.merge_plan import MergePlan
from harness.merge.plan.output_shards import OutputShard, bytes_needed, output_shards
from harness.merge.publish.publish import check_space, publish, working_directory
from harness.merge.publish.target import Target, check_target
from harness.merge.run.ledger import Ledger, Unfinished, entry_of, fingerprint, local_mark
from harness.merge.run.manifest import build_manifest, identity, made_from, status_of
from harness.merge.run.report import Counts, MergeReport, Resumed
from harness.merge.write.adapter_values import AdapterValues
from harness.merge.write.arithmetic import Merger, Outcome
from harness.merge.write.checkpoint_values import BaseValues
from harness.merge.write.factored_deltas import FactoredDeltas
from harness.merge.write.json_files import rewritten_files
from harness.merge.write.shards import ShardFile, ShardWriter
from harness.merge.write.threads import Pool, one_thread_per_operation

Progress = Callable[[int, int], None]
Accumulate = Literal["float32", "float64"]
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """How a merge computes.

    Attributes:
        accumulate: the dtype of sums.
        device: where the arithmetic is done.
        threads: on how many threads, None for as many as there are cores.

    Raises:
        UsageError: a value that cannot be.
    """

    accumulate: Accumulate = "float32"
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.accumulate not in get_args(Accumulate):
            raise UsageError(f"sums are made in {' or '.join(get_args(Accumulate))}, not in {self.accumulate!r}.")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"a merge needs a thread or more, not {self.threads}.")
        if self.device.partition(":")[0] not in DEVICES:
            raise UsageError(f"the arithmetic is done on {' or '.join(DEVICES)}, not on {self.device!r}.")


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written: what became of each tensor that an adapter covers, bytes in all, and bytes of the base that
    were decoded for it.
    """

    outcomes: Mapping[str, Outcome]
    written: int
    decoded: int
    resumed: Resumed | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that writing shards needs: a plan, its files open, its adapters proved finite, its arithmetic ready."""

    plan: MergePlan
    files: InputFiles
    merger: Merger
    deltas: FactoredDeltas
    device: torch.device
    threads: int


@contextmanager
def prepared(plan: MergePlan, compute: ComputeOptions) -> Iterator[Prepared]:
    """Open and check everything that can be checked before something is written.

    Raises:
        UsageError: there is no such device.
        NonFiniteError: an adapter holds NaN or infinity.
    """
    try:
        device = torch.empty(0, device=compute.device).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"torch cannot use the device {compute.device!r} here: {str(error).splitlines()[0]}",
            "Leave out --device, which means cpu, or run it where a CUDA build of torch sees a GPU.",
        ) from error
    threads = compute.threads or default_threads()
    with InputFiles() as files, one_thread_per_operation():
        adapters = AdapterValues(plan, files)
        adapters.check_finite(threads)
        deltas = FactoredDeltas(plan, adapters, device)
        accumulate = torch.float64 if compute.accumulate == "float64" else torch.float32
        merger = Merger(plan, BaseValues(plan.base, files), adapters, deltas, accumulate)
        yield Prepared(
            plan=plan,
            files=files,
            merger=merger,
            deltas=deltas,
            device=device,
            threads=threads,
        )


def write_shards(
    ready: Prepared,
    shards: Sequence[OutputShard],
    numbers: Sequence[int],
    work: Path,
    ledger: Ledger | None,
    progress: Progress | None,
) -> Written:
    """Write some of the output's shards into ``work``.

    Those that the ledger has, and that are what it says, are left as they are.
    """
    outcomes: dict[str, Outcome] = {}
    before = 0
    resumed: Resumed | None = None
    if ledger is not None:
        found = ledger.start()
        kept, rejected = ledger.finished([shards[number] for number in numbers])
        if found or ledger.foreign:
            resumed = Resumed(shards=len(numbers), kept=len(kept), rejected=rejected, foreign=ledger.foreign)
        for entry in kept:
            outcomes |= entry.outcomes
            before += entry.size
            numbers = [number for number in numbers if shards[number].name != entry.name]
        ledger.clear({shard.name for shard in shards} - {shards[number].name for number in numbers})
    wanted = [(number, shards[number]) for number in numbers]
    check_space(work, bytes_needed(ready.plan, [shard for _, shard in wanted], work))
    ready.deltas.expect(
        region
        for _, shard in wanted
        for output in shard.outputs
        if output.row is not None
        for region in output.row.regions
    )
    writer = ShardWriter(ready.plan, ready.files, ready.merger, ready.deltas, work)
    total = before + sum(shard.size for _, shard in wanted)

    def finished(file: ShardFile) -> None:
        outcomes.update(file.outcomes)
        if ledger is not None:
            ledger.add(entry_of(file.path, file.outcomes))

    def poll() -> None:
        if progress is not None:
            progress(before + writer.written, total)

    lanes = estimate(ready.plan, ready.threads).lanes
    writer.write(wanted, finished, threads=ready.threads, lanes=lanes, device=ready.device, poll=poll)
    return Written(outcomes=outcomes, written=before + writer.written, decoded=writer.decoded, resumed=resumed)


def _report(plan: MergePlan, done: Written) -> MergeReport:
    """Count what happened; every planned tensor must have been written, and nothing else.

    Raises:
        IncompleteMergeError: the count does not add up.
    """
    if done.outcomes.keys() != {row.key for row in plan.rows} or len(done.outcomes) != plan.attempted:
        raise IncompleteMergeError(f"{plan.attempted} tensors were planned and {len(done.outcomes)} written.")
    by_kind: dict[str, Counts] = {}
    for row in plan.rows:
        status = status_of(done.outcomes[row.key])
        one = Counts(attempted=1, **{status: 1})
        by_kind[row.kind] = by_kind.get(row.kind, Counts()) + one
    return MergeReport(
        by_kind=by_kind,
        io_layout=plan.io_layout,
        b_packing=plan.b_packing,
        notes=plan.notes,
        files_left_out=plan.base.left_out,
        bytes_written=done.written,
        bytes_decoded=done.decoded,
        resumed=done.resumed,
    )


def finish(
    plan: MergePlan,
    shards: Sequence[OutputShard],
    done: Written,
    work: Path,
    target: Target,
    *,
    accumulate: Accumulate,
    facts: Mapping[str, object],
) -> MergeReport:
    """Complete a directory that holds all shards, and publish it."""
    rewritten = rewritten_files(plan, tuple(shards))
    for relative in plan.base.files:
        if relative in rewritten:
            write_file(work / relative, rewritten[relative])
        else:
            copy_file(plan.base.root / relative, work / relative, what=relative)
    report = _report(plan, done)
    write_file(work / MANIFEST_FILE, build_manifest(plan, report, done.outcomes, accumulate=accumulate, facts=facts))
    publish(work, target)
    return report


def run_merge(
    plan: MergePlan, out: Path, *, overwrite: bool, resume: bool, compute: ComputeOptions, progress: Progress | None
) -> MergeReport:
    """Carry out a plan; see ``harness.merge.merge``."""
    if resume and not overwrite:
        _refuse_complete(plan, out, compute)
    target = check_target(out, overwrite=overwrite, inputs=plan.inputs)
    shards = output_shards(plan)
    with Pool(1, thread_name_prefix="merge-hash") as background:
        facts = background.submit(identity, plan)
        mark = (
            local_mark(plan, fingerprint(plan, compute.accumulate, compute.device, facts.result())) if resume else None
        )
        unfinished = None if mark is None else Unfinished(mark)
        with (
            prepared(plan, compute) as ready,
            kept_work(resume=resume),
            working_directory(target, keep=unfinished) as work,
        ):
            ledger = None if unfinished is None else unfinished.ledger(work)
            done = write_shards(ready, shards, range(len(shards)), work, ledger, progress)
            return finish(plan, shards, done, work, target, accumulate=compute.accumulate, facts=facts.result())


def _refuse_complete(plan: MergePlan, out: Path, compute: ComputeOptions) -> None:
    """Say of an output that it is what is asked for.

    Who resumes a merge that has ended needs no other output, and nothing overwritten.

    Raises:
        OutputExistsError: it is.
    """
    manifest = out / MANIFEST_FILE
    if manifest.is_file() and made_from(manifest, identity(plan), compute.accumulate):
        raise OutputExistsError(
            f"the output {out} is complete already: it was merged from these inputs with these options.",
            "Nothing is left to do.",
        )


@contextmanager
def kept_work(*, resume: bool) -> Iterator[None]:
    """Say in an error that what is finished was kept."""
    try:
        yield
    except MergeError as error:
        if resume:
            error.remedy = " ".join(
                filter(None, [error.remedy, "Finished shards were kept: run it again with --resume."])
            )
        raise
