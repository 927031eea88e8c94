# ruff: noqa: D102  # the methods of a runner are described in the protocol
"""Runs that reuse what earlier ones have kept: what is run is counted, with real workers of a few lines."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from execution_helpers import FakeEnvironment, Recorder, cell, fake_environment, services
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_samples import a_result

from harness.contract.cell_fields import Device
from harness.execution.agenda import stack_key
from harness.execution.loading import load_found, load_result
from harness.execution.machine import MachineKind, machine_kind
from harness.execution.observer import RunReport
from harness.execution.result_cache import ResultCache
from harness.execution.result_room import kept_results
from harness.execution.runner import Ran, RunContext
from harness.execution.scheduler import RunInterruptedError, run_cells
from harness.execution.services import CellSettings, PreparedEnvironment
from harness.execution.supervise import Limits
from harness.matrix.cell import Cell, Stack
from harness.result import CellResult


def ran(recorder: Recorder) -> list[str]:
    """The cells that were run."""
    return [event[1] for event in recorder.events if event[0] == "cell_started"]


def prepared(recorder: Recorder) -> list[str]:
    """The environments that were made."""
    return [event[1] for event in recorder.events if event[0] == "environment_started"]


def identities(cells: list[Cell]) -> Mapping[str, str]:
    """What is known of the environments beforehand."""
    return {stack_key(each.stack): fake_environment(Path(), each.stack).identity or "" for each in cells}


def test_a_second_run_runs_nothing_and_makes_no_environment(tmp_path: Path) -> None:
    plan = [cell(seed=0), cell(seed=1), cell(peft="0.18.1")]
    cache = ResultCache(tmp_path / "kept")
    first, second = Recorder(), Recorder()
    one = run_cells(plan, services(tmp_path, results=cache), first)
    other = services(tmp_path, results=cache, identities=identities(plan))
    two = run_cells(plan, other, second)

    assert len(ran(first)) == 3
    assert ran(second) == prepared(second) == []
    assert one.reused == frozenset()
    assert two.reused == {each.id for each in plan}
    assert [it.reused is None for it in two.results] == [False] * 3
    assert [it.model_copy(update={"reused": None, "last_passed": None}) for it in two.results] == list(one.results)
    assert [it.last_passed for it in two.results] == [it.started for it in one.results], "into the same directory"
    for result in two.results:
        assert result.log is not None
        assert (tmp_path / "out" / result.log).read_text().startswith("$ ")
        assert load_result(tmp_path / "out" / "cells" / "qwen3_moe" / f"{result.cell.file_stem}.json") == result


def test_what_is_reused_is_written_to_any_directory_beside_its_log(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "kept")
    run_cells([cell()], services(tmp_path, results=cache), Recorder())
    (tmp_path / "other").mkdir()
    report = run_cells([cell()], services(tmp_path / "other", results=cache), Recorder())
    found = load_found([tmp_path / "other" / "out"])

    assert found.results == list(report.results)
    assert found.planned == {}
    assert (tmp_path / "other" / "out" / str(report.results[0].log)).read_bytes()


def test_without_known_locks_an_environment_is_made_and_the_result_reused(tmp_path: Path) -> None:
    cache, recorder = ResultCache(tmp_path / "kept"), Recorder()
    run_cells([cell()], services(tmp_path, results=cache), Recorder())
    report = run_cells([cell()], services(tmp_path, results=cache), recorder)

    assert ran(recorder) == []
    assert prepared(recorder) == ["0.19.1"]
    assert report.reused == {cell().id}


@pytest.mark.parametrize("recipe", ["killed", "segfaults", "garbage", "raises", "greedy"])
def test_what_a_machine_may_have_done_runs_again(tmp_path: Path, recipe: str) -> None:
    """None of these workers told of an exception: each died, one by one."""
    cache, recorder = ResultCache(tmp_path / "kept"), Recorder()
    limits = Limits(seconds=20, memory_mb=150, grace=0.1, interval=0.05)
    for observer in (Recorder(), recorder):
        run_cells([cell(recipe)], services(tmp_path, results=cache, limits=limits), observer)

    assert len(ran(recorder)) == 1
    assert kept_results(cache.root) == []


def test_nothing_of_an_interpreter_that_was_given_or_of_a_planted_fault_is_kept(tmp_path: Path) -> None:
    def given(wanted: Stack) -> FakeEnvironment:
        return replace(fake_environment(tmp_path, wanted), lock_sha256=None, identity=None)

    cache = ResultCache(tmp_path / "kept")
    run_cells([cell(unmanaged=True)], services(tmp_path, prepare=given, results=cache), Recorder())
    run_cells([cell(fault="b-packing")], services(tmp_path, results=cache), Recorder())

    assert kept_results(cache.root) == []


def test_a_hostile_entry_is_said_and_its_cell_runs(tmp_path: Path) -> None:
    cache, recorder = ResultCache(tmp_path / "kept"), Recorder()
    run_cells([cell()], services(tmp_path, results=cache), Recorder())
    path = kept_results(cache.root)[0].path
    path.write_bytes(path.read_bytes()[:-100])
    run_cells([cell()], services(tmp_path, results=cache, identities=identities([cell()])), recorder)
    again = Recorder()
    run_cells([cell()], services(tmp_path, results=cache), again)

    assert len(ran(recorder)) == 1
    assert [event for event in recorder.events if event[0] == "note" and "is ignored" in event[1]]
    assert ran(again) == [], "what the cell came to was kept anew"


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    cancelled, cache = threading.Event(), ResultCache(tmp_path / "kept")

    class Canceller(Recorder):
        def cell_finished(self, result: CellResult, *, reused: bool) -> None:
            super().cell_finished(result, reused=reused)
            cancelled.set()

    plan, recorder = [cell(seed=number) for number in range(3)], Recorder()
    with pytest.raises(RunInterruptedError):
        run_cells(plan, services(tmp_path, results=cache), Canceller(), cancelled=cancelled)
    report = run_cells(plan, services(tmp_path, results=cache), recorder)

    assert ran(recorder) == [each.id for each in plan[1:]]
    assert len(report.results) == 3


def test_a_run_that_may_not_reuse_keeps_what_it_came_to(tmp_path: Path) -> None:
    cache, recorder = ResultCache(tmp_path / "kept"), Recorder()
    run_cells([cell()], services(tmp_path, results=cache), Recorder())
    before = json.loads(kept_results(cache.root)[0].path.read_text())
    run_cells([cell()], replace(services(tmp_path, results=cache), reuse=None), recorder)

    assert len(ran(recorder)) == 1
    assert len(kept_results(cache.root)) == 1
    assert json.loads(kept_results(cache.root)[0].path.read_text())["result"] != before["result"]


def test_a_run_that_ran_a_cell_makes_room(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "kept", room=1)
    run_cells([cell()], services(tmp_path, results=cache), Recorder())

    assert kept_results(cache.root) == []


class Counting:
    """A runner that runs nothing and remembers which cells it was asked for."""

    asked: list[str]

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.store = context.store

    def prepare(self, stack: Stack) -> PreparedEnvironment:
        return self.context.prepare(stack)

    def machines(self, device: Device) -> Collection[MachineKind]:
        return (machine_kind(device),)

    def run(self, cell: Cell, environment: PreparedEnvironment, settings: CellSettings, **_: object) -> Ran:
        del settings
        Counting.asked.append(cell.id)
        self.store.running_log_path(cell).write_text("ran\n")
        result = a_result(cell, log=self.store.relative(self.store.log_path(cell)))
        return Ran(result=result, key=self.context.fingerprints.of(cell, environment.identity))

    def release(self, stack: Stack) -> None:
        del stack

    def close(self) -> None:
        pass


def count(folder: Path, plan: list[Cell], *, lock: Mapping[str, str], bands: float) -> tuple[list[str], RunReport]:
    """Run a plan; return the cells that were run."""
    Counting.asked = []

    def prepare(wanted: Stack) -> FakeEnvironment:
        made = fake_environment(folder, wanted)
        return replace(made, identity=f"{made.identity}, lock {lock[wanted.peft]}")

    needed = services(folder, prepare=prepare, results=ResultCache(folder / "kept"), bands={"kl_max": bands})
    report = run_cells(plan, needed, Recorder(), make_runner=Counting)
    return Counting.asked, report


PEFTS = ("0.18.1", "0.19.1")
cells_of = st.lists(
    st.builds(cell, st.sampled_from(["lora", "qlora4"]), seed=st.integers(0, 2), peft=st.sampled_from(PEFTS)),
    min_size=1, max_size=6, unique_by=lambda each: each.id,
)  # fmt: skip


@settings(max_examples=25)
@given(
    first=cells_of,
    second=cells_of,
    locks=st.lists(st.sampled_from("ab"), min_size=2, max_size=2),
    bands=st.booleans(),
)
def test_a_change_runs_again_exactly_what_it_decides(
    tmp_path_factory: pytest.TempPathFactory, first: list[Cell], second: list[Cell], locks: list[str], bands: bool
) -> None:
    """Of two runs the second runs what the first had not, what has another lock, and all of it under other bands."""
    folder = tmp_path_factory.mktemp("runs")
    count(folder, first, lock=dict.fromkeys(PEFTS, "a"), bands=1e-9)
    now = dict(zip(PEFTS, locks, strict=True))
    asked, report = count(folder, second, lock=now, bands=1e-8 if bands else 1e-9)
    had = {each.id for each in first}
    expected = {each.id for each in second if bands or each.id not in had or now[each.stack.peft] != "a"}

    assert set(asked) == expected
    assert len(asked) == len(expected)
    assert report.reused == {each.id for each in second} - expected


def test_a_profile_of_hundreds_is_reused_as_a_whole(tmp_path: Path) -> None:
    """An unchanged default profile runs nothing: counted, not timed (``harness/bench/cases/reuse.py`` times it)."""
    plan = [cell("lora", seed=number, peft=peft) for number in range(110) for peft in PEFTS]
    lock = dict.fromkeys(PEFTS, "a")
    asked, _ = count(tmp_path, plan, lock=lock, bands=1e-9)
    again, report = count(tmp_path, plan, lock=lock, bands=1e-9)

    assert len(asked) == 220
    assert again == []
    assert len(report.reused) == len(report.results) == 220
