"""All cells of a run: environments once a stack, order, what is passed on, what is kept, what is taken over."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from execution_helpers import FakeEnvironment, Recorder, cell, fake_environment, services, stack
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.envs import Unresolvable
from harness.errors import ConfigurationError, EnvironmentFailedError, NothingSelectedError, VersionNotFoundError
from harness.execution.agenda import Agenda, stack_key
from harness.execution.loading import load_found, load_result
from harness.execution.room import PROCESSES, SHARE, Room
from harness.execution.scheduler import RunInterruptedError, run_cells
from harness.execution.services import Expected
from harness.matrix.cell import Cell, Stack
from harness.result import CellResult


def test_two_cells_of_a_stack_prepare_its_environment_once(tmp_path: Path) -> None:
    prepared: list[str] = []

    def prepare(wanted: Stack) -> FakeEnvironment:
        prepared.append(wanted.peft)
        return fake_environment(tmp_path, wanted)

    cells = [cell(seed=0), cell(seed=1), cell(peft="0.18.1"), cell(seed=2)]
    report = run_cells(cells, services(tmp_path, prepare=prepare), Recorder(), jobs=2)

    assert prepared == ["0.19.1", "0.18.1"]
    assert [result.cell_id for result in report.results] == [cell.id for cell in cells]
    assert {result.outcome for result in report.results} == {"pass"}


def test_stacks_with_the_same_id_and_other_pins_have_environments_of_their_own(tmp_path: Path) -> None:
    prepared: list[Stack] = []

    def prepare(wanted: Stack) -> FakeEnvironment:
        prepared.append(wanted)
        return fake_environment(tmp_path, wanted)

    other = stack(pins={"torch": "2.12.0"}).model_copy(update={"extra_pins": ("torch",)})
    plan = [cell(), cell().model_copy(update={"stack": other})]
    run_cells(plan, services(tmp_path, prepare=prepare), Recorder())

    assert [each.pins["torch"] for each in prepared] == ["2.13.0", "2.12.0"]


def test_cells_start_while_other_environments_are_still_being_made(tmp_path: Path) -> None:
    first_cell_done = threading.Event()

    class Watcher(Recorder):
        def cell_finished(self, result: object, *, reused: bool) -> None:
            super().cell_finished(result, reused=reused)  # type: ignore[arg-type]  # passed on as it came
            first_cell_done.set()

    def prepare(wanted: Stack) -> FakeEnvironment:
        if wanted.peft == "0.18.1":
            assert first_cell_done.wait(30), "the first stack's cell waited for the second stack's environment"
        return fake_environment(tmp_path, wanted)

    report = run_cells([cell(), cell(peft="0.18.1")], services(tmp_path, prepare=prepare), Watcher())

    assert [result.outcome for result in report.results] == ["pass", "pass"]


def test_as_many_cells_run_at_a_time_as_there_are_jobs(tmp_path: Path) -> None:
    recorder = Recorder()
    run_cells([cell("slow", seed=number) for number in range(5)], services(tmp_path), recorder, jobs=2)

    assert recorder.most_running == 2


def test_the_observer_hears_everything_in_order_and_in_one_thread(tmp_path: Path) -> None:
    recorder = Recorder()
    only = cell("slow")
    run_cells([only], services(tmp_path), recorder)

    assert recorder.events == [
        ("planned", "1"),
        ("environment_started", "0.19.1"),
        ("environment_ready", "0.19.1"),
        ("cell_started", only.id),
        ("cell_stage", only.id, "train"),
        ("cell_finished", only.id, "made"),
        ("run_ended",),
        ("closed",),
    ]
    assert recorder.threads == {threading.get_ident()}


def test_unresolvable_is_an_outcome_of_every_cell_of_the_stack_in_the_resolvers_words(tmp_path: Path) -> None:
    words = f"Because trl==0.25.1 depends on b and {Path.home()}/wheels has none, your requirements are unsatisfiable."

    def prepare(wanted: Stack) -> FakeEnvironment:
        if wanted.peft == "0.18.1":
            raise Unresolvable(words)
        return fake_environment(tmp_path, wanted)

    cells = [cell(peft="0.18.1"), cell(peft="0.18.1", seed=1), cell()]
    report = run_cells(cells, services(tmp_path, prepare=prepare), Recorder())
    first = report.results[0]

    assert [result.outcome for result in report.results] == ["unresolvable", "unresolvable", "pass"]
    assert (first.stage, first.reason) == ("resolve", words.replace(str(Path.home()), "<home>"))
    assert first.stages["install"].result == "not_run"
    assert first.stages["controls"].reason == "needs resolve, which ended in unresolvable"
    assert report.environment_failures == ()


@pytest.mark.parametrize(
    ("error", "outcome", "stage"),
    [
        (EnvironmentFailedError("no index answers"), "environment", "install"),
        (VersionNotFoundError("no peft 0.18.1"), "unresolvable", "resolve"),
    ],
)
def test_an_environment_that_fails_is_what_its_cells_ended_in_and_the_others_go_on(
    tmp_path: Path, error: EnvironmentFailedError | VersionNotFoundError, outcome: str, stage: str
) -> None:
    def prepare(wanted: Stack) -> FakeEnvironment:
        if wanted.peft == "0.18.1":
            raise error
        return fake_environment(tmp_path, wanted)

    recorder = Recorder()
    failing = cell(peft="0.18.1")
    report = run_cells([failing, cell()], services(tmp_path, prepare=prepare), recorder)
    result = report.results[0]

    assert [each.outcome for each in report.results] == [outcome, "pass"]
    assert (result.stage, result.reason) == (stage, error.message)
    assert report.environment_failures == ((failing.stack, error),)
    assert ("environment_failed", "0.18.1", error.message) in recorder.events
    assert load_result(tmp_path / "out" / "cells" / "qwen3_moe" / f"{failing.file_stem}.json") == result


def test_any_other_error_while_preparing_ends_the_run_with_no_child_left(tmp_path: Path) -> None:
    def prepare(wanted: Stack) -> FakeEnvironment:
        if wanted.peft == "0.18.1":
            raise ZeroDivisionError("a fault of ours")
        return fake_environment(tmp_path, wanted)

    recorder = Recorder()
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        run_cells([cell("hangs"), cell(peft="0.18.1")], services(tmp_path, prepare=prepare), recorder)

    assert time.monotonic() - began < 15
    assert recorder.events[-1] == ("closed",)
    assert list((tmp_path / "scratch").glob("*")) == []


def test_a_run_can_be_cancelled_from_elsewhere(tmp_path: Path) -> None:
    cancelled = threading.Event()

    class Canceller(Recorder):
        def cell_stage(self, cell: Cell, stage: object) -> None:
            del cell, stage
            cancelled.set()

    plan = [cell("passes"), cell("hangs"), cell("passes", seed=1)]
    with pytest.raises(RunInterruptedError) as caught:
        run_cells(plan, services(tmp_path), Canceller(), cancelled=cancelled)

    report = caught.value.report
    assert caught.value.exit_code == 130
    assert [result.cell_id for result in report.results] == [plan[0].id]
    assert list(report.unfinished) == plan[1:]
    assert sorted(path.name for path in (tmp_path / "out" / "cells" / "qwen3_moe").iterdir()) == [
        f"{plan[1].file_stem}.planned",
        f"{plan[2].file_stem}.planned",
        f"{plan[0].file_stem}.json",
        f"{plan[0].file_stem}.log",
    ]


def test_a_folder_knows_what_is_missing_until_a_later_run_has_it(tmp_path: Path) -> None:
    cancelled = threading.Event()

    class Canceller(Recorder):
        def cell_finished(self, result: CellResult, *, reused: bool) -> None:
            super().cell_finished(result, reused=reused)
            cancelled.set()

    plan = [cell(), cell(seed=1)]
    run_cells(plan, services(tmp_path), Recorder())
    with pytest.raises(RunInterruptedError):
        run_cells(plan, services(tmp_path), Canceller(), cancelled=cancelled)
    interrupted = load_found([tmp_path / "out"])
    run_cells(plan, services(tmp_path), Recorder())
    whole = load_found([tmp_path / "out"])

    assert [result.cell_id for result in interrupted.results] == [plan[0].id]
    assert list(interrupted.planned.values()) == plan[1:]
    assert {result.cell_id for result in whole.results} == {one.id for one in plan}
    assert whole.planned == {}


def test_a_cancellation_after_the_last_cell_interrupts_nothing(tmp_path: Path) -> None:
    cancelled = threading.Event()

    class Late(Recorder):
        def cell_finished(self, result: CellResult, *, reused: bool) -> None:
            super().cell_finished(result, reused=reused)
            cancelled.set()

    assert not run_cells([cell()], services(tmp_path), Late(), cancelled=cancelled).interrupted
    cancelled.clear()
    with pytest.raises(RunInterruptedError, match="1 of 2 cells has a result, which is kept"):
        run_cells([cell(), cell("slow")], services(tmp_path), Late(), cancelled=cancelled)


def test_an_empty_plan_and_a_file_as_output_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NothingSelectedError):
        run_cells([], services(tmp_path), Recorder())
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigurationError, match="Results cannot be written"):
        run_cells([cell()], services(tmp_path), Recorder())


def test_a_cell_planned_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        Agenda([cell(), cell()])


def test_ready_stacks_take_turns() -> None:
    old, new = stack(peft="0.18.1"), stack()
    agenda = Agenda([cell(seed=n) for n in range(3)] + [cell(seed=n, peft="0.18.1") for n in range(3)])

    assert agenda.next() is None
    agenda.ready(stack_key(new))
    taken = [agenda.next(), agenda.next()]
    agenda.ready(stack_key(old))
    taken += [agenda.next() for _ in range(5)]

    order = [None if each is None else (each.stack.peft, each.seed) for each in taken]
    assert order == [
        ("0.19.1", 0),
        ("0.19.1", 1),
        ("0.18.1", 0),
        ("0.18.1", 1),
        ("0.19.1", 2),
        ("0.18.1", 2),
        None,
    ]


def test_only_so_many_stacks_are_open_at_a_time() -> None:
    """Another begins when one of those that have begun has nothing left to start."""
    plan = [cell(seed=n, peft=peft) for n in range(2) for peft in ("0.18.1", "0.19.1", "0.20.0")]
    agenda = Agenda(plan, open_stacks=2)
    for peft in ("0.18.1", "0.19.1", "0.20.0"):
        agenda.ready(stack_key(stack(peft=peft)))

    order = [(each.stack.peft, each.seed) for _ in plan if (each := agenda.next())]
    assert order == [("0.18.1", 0), ("0.19.1", 0), ("0.18.1", 1), ("0.20.0", 0), ("0.19.1", 1), ("0.20.0", 1)]


def order_of(agenda: Agenda) -> list[tuple[str, int]]:
    """Everything that is left, in the order in which it is given out."""
    found = []
    while (each := agenda.next()) is not None:
        found.append((each.stack.peft, each.seed))
    return found


def test_the_longest_goes_first() -> None:
    """Whatever its stack; a stack with more to do is prepared before one with less."""
    plan = [cell(seed=n, peft=peft) for peft in ("0.18.1", "0.19.1") for n in range(3)]
    seconds = {("0.18.1", 0): 1, ("0.18.1", 1): 4, ("0.18.1", 2): 2, ("0.19.1", 0): 3, ("0.19.1", 1): 9}
    agenda = Agenda(plan)
    agenda.weigh(lambda each: seconds.get((each.stack.peft, each.seed), 2))
    assert [each.peft for each in agenda.stacks.values()] == ["0.19.1", "0.18.1"]
    for key in agenda.stacks:
        agenda.ready(key)

    order = order_of(agenda)
    # Of the two that take 2 s, that of 0.18.1 comes first: of its stack fewer have been started.
    assert order == [("0.19.1", 1), ("0.18.1", 1), ("0.19.1", 0), ("0.18.1", 2), ("0.19.1", 2), ("0.18.1", 0)]


def test_what_is_urgent_goes_before_what_is_long() -> None:
    plan = [cell(seed=n, peft=peft) for peft in ("0.18.1", "0.19.1") for n in range(2)]
    agenda = Agenda(plan, urgent={stack_key(stack(peft="0.19.1"))})
    agenda.weigh(lambda each: 100 if each.stack.peft == "0.18.1" else each.seed)
    assert [each.peft for each in agenda.stacks.values()] == ["0.19.1", "0.18.1"]
    for key in agenda.stacks:
        agenda.ready(key)

    assert order_of(agenda) == [("0.19.1", 1), ("0.19.1", 0), ("0.18.1", 0), ("0.18.1", 1)]


def test_what_does_not_fit_lets_what_does_go_first() -> None:
    agenda = Agenda([cell(seed=n) for n in range(3)])
    agenda.weigh(lambda each: -each.seed)
    agenda.ready(stack_key(stack()))

    assert agenda.next(lambda _: False) is None
    taken = agenda.next(lambda each: each.seed == 2)
    assert taken is not None
    assert taken.seed == 2
    assert order_of(agenda) == [("0.19.1", 0), ("0.19.1", 1)]


def test_memory_is_divided_as_cores_are() -> None:
    room = Room(cells=3, memory_mb=4000 / SHARE)
    assert PROCESSES == 2, "the numbers below are for two processes of a cell"

    assert room.fits(99999, []), "one may always run alone"
    assert room.fits(1000, [1000])  # 2 * (1000 + 1000) = 4000
    assert not room.fits(1001, [1000])
    assert room.fits(500, [500, 500])
    assert not room.fits(0, [1, 1, 1]), "cores are taken"
    assert Room(cells=2).fits(99999, [99999]), "memory is not looked at"


def most_at_once(tmp_path: Path, memory_mb: float | None) -> int:
    """Run three cells that are expected to take 1000 MiB, with cores for all; say how many ran at once."""
    recorder = Recorder()
    wanted = replace(services(tmp_path), expected=lambda _: Expected(seconds=1, memory_mb=1000))
    run_cells([cell("slow", seed=n) for n in range(3)], wanted, recorder, jobs=3, memory_mb=memory_mb)
    return recorder.most_running


def test_no_more_cells_run_at_once_than_memory_allows(tmp_path: Path) -> None:
    assert most_at_once(tmp_path, 2 * 2 * 1000 / SHARE) == 2
    assert most_at_once(tmp_path, 10) == 1
    assert most_at_once(tmp_path, None) == 3


def test_environments_that_are_there_come_first(tmp_path: Path) -> None:
    """However much there is to do with the others."""
    plan = [cell(seed=n, peft="0.18.1") for n in range(3)] + [cell(peft="0.19.1")]
    recorder = Recorder()
    wanted = replace(
        services(tmp_path), there={stack_key(stack(peft="0.19.1"))}, expected=lambda _: Expected(seconds=5)
    )
    run_cells(plan, wanted, recorder)

    assert [event[1] for event in recorder.events if event[0] == "environment_started"] == ["0.19.1", "0.18.1"]


PEFTS = ("0.17.1", "0.18.1", "0.19.1", "0.20.0")


@settings(deadline=None, max_examples=60)  # the machine may be busy
@given(
    counts=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    actions=st.lists(st.one_of(st.sampled_from(PEFTS), st.none()), max_size=30),
    open_stacks=st.one_of(st.none(), st.integers(1, 4)),
)
def test_every_cell_is_given_out_once_and_only_when_ready(
    counts: list[int], actions: list[str | None], open_stacks: int | None
) -> None:
    """Whatever becomes ready when: nothing is lost, nothing comes twice, and there is a cell whenever one could run."""
    plan = [cell(seed=n, peft=peft) for peft, count in zip(PEFTS, counts, strict=True) for n in range(count)]
    agenda = Agenda(plan, open_stacks=open_stacks)
    ready: set[str] = set()
    given_out: list[Cell] = []
    declared = {each.stack.peft for each in plan}
    for action in [*actions, *PEFTS, *[None] * len(plan)]:
        if action is None:
            possible = [each for each in plan if each.stack.peft in ready and each not in given_out]
            taken = agenda.next()
            assert (taken is None) == (not possible)
            if taken is not None:
                assert taken in possible
                given_out.append(taken)
        elif action in declared:
            agenda.ready(stack_key(stack(peft=action)))
            ready.add(action)

    assert sorted(each.id for each in given_out) == sorted(each.id for each in plan)
