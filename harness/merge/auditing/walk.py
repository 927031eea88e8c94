"""The audit itself: every tensor that a right merge would have written, once, in the order of the base's shards.

Reading goes from front to back through the base. The merged checkpoint is read wherever the same contents are. Threads
take a run of tensors each: reading, multiplying and comparing all happen outside the interpreter's lock.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from harness.merge.adapter.layout import BPacking, IoLayout
from harness.merge.auditing.config_contradictions import config_problems, merged_config
from harness.merge.auditing.config_differences import differences
from harness.merge.auditing.inputs import AdapterReader, Checkpoints
from harness.merge.auditing.judge import Judge
from harness.merge.auditing.merged_checkpoint import open_merged
from harness.merge.auditing.missing_files import missing_files
from harness.merge.auditing.report import AuditReport
from harness.merge.auditing.tensor_verdict import TensorVerdict
from harness.merge.errors import counted, listed
from harness.merge.files.any_path import AnyPath
from harness.merge.plan.estimate import default_threads
from harness.merge.plan.output_shards import Output, output_shard
from harness.merge.plan.planner import plan_merge
from harness.merge.write.threads import Pool, one_thread_per_operation

JOB_BYTES = 1 << 25
"""Bytes that a thread takes at a time."""
UNMERGED = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b|\.base_layer\.|\.token_adapter\.")
LEFT_BEHIND = "tensors of an adapter lie beside the merged ones, and a loader ignores them"
ONE_DIRECTORY = "base and merged are one directory, so whatever the adapter changes reads as dropped"
STORED_TWICE = "tensors are there under two names or in two forms, and loaders differ in which they take"
Progress = Callable[[int, int], None]


def _counted(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{value} ({counted(count, 'tensor')})" for value, count in sorted(Counter(values).items()))


def _jobs(wanted: Mapping[str, Output]) -> Iterator[tuple[list[str], int]]:
    """Yield the keys in file order, in jobs of about ``JOB_BYTES``, with their size."""
    keys: list[str] = []
    size = 0
    for key, output in wanted.items():
        keys.append(key)
        size += output.stop - output.start
        if size >= JOB_BYTES:
            yield keys, size
            keys, size = [], 0
    if keys:
        yield keys, size


def _compare(judge: Judge, progress: Progress | None) -> list[TensorVerdict]:
    jobs = list(_jobs(judge.wanted))
    total, done = sum(size for _, size in jobs), 0
    rows: list[TensorVerdict] = []
    with one_thread_per_operation(), Pool(max_workers=default_threads()) as pool:
        try:
            for (_, size), verdicts in zip(jobs, pool.map(judge.verdicts, (keys for keys, _ in jobs)), strict=True):
                rows += verdicts
                done += size
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return rows


def run_audit(
    base: AnyPath,
    adapter: AnyPath | Sequence[AnyPath],
    merged: AnyPath,
    *,
    weights: Sequence[float] | None,
    io_layout: IoLayout | None,
    b_packing: BPacking | None,
    progress: Progress | None,
) -> AuditReport:
    """Compare the three directories; see ``harness.merge.audit``."""
    plan = plan_merge(base, adapter, weights=weights, io_layout=io_layout, b_packing=b_packing)
    found = open_merged(Path(merged))
    shards = (output_shard(plan, number) for number in range(len(plan.base.shards)))
    wanted = {output.key: output for shard in shards for output in shard.outputs}
    with ExitStack() as opened:
        trained = AdapterReader(plan)
        opened.callback(trained.close)
        checkpoints = Checkpoints(plan, found)
        opened.callback(checkpoints.close)
        judge = Judge(plan, wanted, found, checkpoints, trained)
        rows = _compare(judge, progress)
    config = merged_config(found)
    differing = differences(plan.base.config, config, plan.config)
    missing, others = missing_files(plan.base, found)
    pairings = judge.pairings
    used = {name for pairing in pairings.values() for name in pairing.keys}
    used |= {key for key, pairing in pairings.items() if pairing.problem}
    unexpected = sorted(key for key in found.shard_of if key not in used and key not in plan.base)
    twice = judge.pairer.stored_twice(unexpected)
    left = [key for key in unexpected if UNMERGED.search(key)]
    return AuditReport(
        rows=tuple(rows),
        missing_files=missing,
        index_problems=(*found.problems, *([f"{STORED_TWICE}: {listed(twice)}"] if twice else [])),
        config_problems=config_problems(plan, found, pairings, config),
        config_changes=differing.faults,
        unexpected=tuple(unexpected),
        equivalents=_counted(pairing.rename for pairing in pairings.values() if pairing.rename),
        dtype_changes=_counted(f"{wanted[row.key].dtype} -> {row.merged_dtype}" for row in rows if row.merged_dtype),
        other_files=others,
        io_layout=plan.io_layout,
        b_packing=plan.b_packing,
        notes=(
            *plan.notes,
            *([ONE_DIRECTORY] if plan.base.root == found.root else []),
            *differing.notes,
            *([f"{LEFT_BEHIND}: {listed(left)}"] if left else []),
        ),
        bytes_read=checkpoints.bytes_read,
    )
