"""One numbered case of the fuzz: a seed, some mutations, one call of the engine, and what may come of it.

A case is a number: ``run_case(number, folder)`` does the same today and tomorrow. It returns what happened (``refused
CorruptFileError``, ``merged``) or raises ``Broken``: another exception than the engine's own, something left on disk,
output that is not whole, more time or memory than such small inputs can need.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, NoReturn

from hostile_inputs import prepare
from hostile_samples import Seed, seeds
from safetensors import SafetensorError, safe_open

from harness.merge import MergeError, audit, merge, plan_merge
from harness.merge.adapter.adapter import open_adapter
from harness.merge.adapter_tools.convert import convert_adapter
from harness.merge.adapter_tools.inspection import inspect_adapter
from harness.merge.base.checkpoint import open_checkpoint
from harness.merge.plan.merge_plan import MergePlan

SECONDS = 5.0
"""Processor time that a case may take; a valid one takes some hundredths."""
WALL_SECONDS = 60.0
MEGABYTES = 64
"""What a case may add to the process's peak memory; its inputs have well under a megabyte."""
LONGEST_MESSAGE = 5000


class Broken(Exception):  # noqa: N818 - a finding, not an error of this program
    """The engine did something that hostile input must not make it do."""


class Hung(BaseException):
    """The time is up."""


def _strict(value: object) -> None:
    """Prove that a result can be printed: JSON that every reader takes."""
    json.dumps(value, allow_nan=False)


def _options(random: Random, seed: Seed) -> dict[str, Any]:
    options = dict(seed.options)
    if random.random() < 0.15:
        options["dtype"] = random.choice(("float32", "bfloat16", "float16"))
    if random.random() < 0.15:
        options["b_packing"] = random.choice(("rank_major", "grouped_by_expert"))
    if random.random() < 0.1:
        options["io_layout"] = random.choice(("standard", "swapped"))
    if random.random() < 0.05:
        numbers = (0, 0.0, -1, 1e308, -1e308, 1e-320, 10**400, float("nan"), float("inf"), 2.5)
        options["weights"] = [random.choice(numbers) for _ in range(random.choice((1, len(seed.adapters), 3)))]
    return options


def _plan(random: Random, seed: Seed, folder: Path) -> MergePlan:
    adapters = [folder / name for name in seed.adapters]
    plan = plan_merge(folder / "base", adapters if len(adapters) > 1 else adapters[0], **_options(random, seed))
    _strict(plan.to_json())
    return plan


def _merged(random: Random, seed: Seed, folder: Path) -> str:
    plan = _plan(random, seed, folder)
    report = merge(plan, folder / "out")
    _strict(report.to_json())
    check_checkpoint(plan, folder / "out")
    return "merged"


def _planned(random: Random, seed: Seed, folder: Path) -> str:
    _plan(random, seed, folder)
    return "planned"


def _audited(_random: Random, _seed: Seed, folder: Path) -> str:
    report = audit(folder / "base", folder / "adapter", folder / "merged")
    _strict(report.to_json())
    return f"audited, exit {report.exit_code}"


def _inspected(random: Random, seed: Seed, folder: Path) -> str:
    facts = inspect_adapter(folder / random.choice(seed.adapters), base=random.choice((None, folder / "base")))
    _strict(facts.to_json())
    return "inspected"


def _converted(random: Random, seed: Seed, folder: Path) -> str:
    wanted: dict[str, Any] = random.choice((
        {"to_io_layout": "standard"}, {"to_io_layout": "swapped"}, {"to_b_packing": "grouped_by_expert"},
        {"to_b_packing": "rank_major"},
        {"to_experts": "fused"}, {"to_experts": "per-expert"}, {},
    ))  # fmt: skip
    result = convert_adapter(folder / random.choice(seed.adapters), folder / "out", **wanted)
    _strict(result)
    converted = open_adapter(folder / "out")
    if not _readable(converted.file.path):
        raise Broken("the converted adapter is no file that safetensors reads")
    return "converted"


CALLS: tuple[tuple[Callable[[Random, Seed, Path], str], float], ...] = (
    (_merged, 50), (_planned, 8), (_audited, 18), (_inspected, 10), (_converted, 14),
)  # fmt: skip


def _readable(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return bool(file.keys())
    except SafetensorError:
        return False


def check_checkpoint(plan: MergePlan, out: Path) -> None:
    """Prove that a published merge is a whole checkpoint with the planned keys.

    Raises:
        Broken: it is not.
        MergeError: the engine itself cannot read it.
    """
    found = open_checkpoint(out)
    rows = {row.key: row for row in (*plan.rows, *plan.conversions)}
    if set(found.shard_of) != (set(plan.base.shard_of) - plan.dropped) | set(rows):
        raise Broken("the output does not hold the planned keys")
    for key, row in rows.items():
        if (found.info(key).shape, found.info(key).dtype) != (row.shape, row.dtype):
            raise Broken(f"{key} is not what was planned")
    for shard, base in zip(found.shards, plan.base.shards, strict=True):
        if _readable(base.path) and not _readable(shard.path):
            raise Broken(f"{shard.name} is no file that safetensors reads")
    manifest = json.loads((out / "merge_manifest.json").read_bytes(), parse_constant=_no_constant)
    if {row["key"] for row in manifest["rows"]} != {row.key for row in plan.rows}:
        raise Broken("the manifest does not list the planned rows")


def _no_constant(name: str) -> NoReturn:
    raise Broken(f"the manifest holds {name}")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """End what takes too long, by processor time and, for what only waits, by the clock."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise Hung

    before = [signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    waiting, _ = signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGPROF, before[0])
        signal.signal(signal.SIGALRM, before[1])
        signal.setitimer(signal.ITIMER_REAL, waiting)  # the test runner's own alarm goes on


def peak_kilobytes(*, reset: bool = False) -> int:
    """Return the process's peak memory in kilobytes; Linux lets it be set back to what is used now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def _call(random: Random, seed: Seed, folder: Path) -> str:
    calls = [(call, weight) for call, weight in CALLS if call is not _audited or seed.audited]
    call = random.choices([one for one, _ in calls], [weight for _, weight in calls])[0]
    try:
        with _limited():
            return call(random, seed, folder)
    except MergeError as error:
        _strict(error.to_json())
        if error.exit_code not in {1, 2, 5} or not error.message or len(error.message) > LONGEST_MESSAGE:
            raise Broken(f"exit {error.exit_code} with a message of {len(error.message)} characters") from error
        return f"refused {type(error).__name__}, exit {error.exit_code}"


def run_case(number: int, folder: Path) -> str:
    """Run one case in an empty folder and return what happened.

    Raises:
        Broken: with the seed, what was mutated, and the cause.
    """
    random = Random(number)  # noqa: S311 - nothing secret
    seed = random.choice(seeds())
    touched = prepare(random, seed, folder)
    before = {path.name for path in folder.iterdir()}
    start = peak_kilobytes(reset=True)
    told = f"case {number} ({seed.name}: {', '.join(touched)})"
    try:
        outcome = _call(random, seed, folder)
    except (Exception, Hung) as error:
        raise Broken(f"{told}: {type(error).__name__}: {str(error)[:300]}") from error
    grown = (peak_kilobytes() - start) // 1024
    if grown > MEGABYTES:
        raise Broken(f"{told}: {outcome}, and took {grown} MB")
    wanted = before | ({"out"} if outcome in {"merged", "converted"} else set())
    if (left := {path.name for path in folder.iterdir()}) != wanted:
        raise Broken(f"{told}: {outcome}, and left {sorted(left ^ wanted)}")
    return outcome
