"""Warm workers: a cell finds nothing of the one before it, and nothing that happens to a worker is lost."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from execution_helpers import Recorder, alive, cell, child_environment, services, wait_until
from warm_helpers import warm_package

from harness.execution.deadman import TOKEN
from harness.execution.runner import ProcessOrigin
from harness.execution.scheduler import RunInterruptedError, run_cells
from harness.execution.supervise import Limits
from harness.execution.warm.home import Home
from harness.execution.warm.worker import Patience, WarmWorker, WorkerSpec
from harness.matrix.cell import Cell
from harness.result import CellResult


def run(
    folder: Path, cells: list[Cell], *, processes: ProcessOrigin = "warm", jobs: int = 1, prepare: str = "    pass"
) -> tuple[list[CellResult], list[str]]:
    """Run cells; return their results and what was noted meanwhile."""
    if not (folder / "package").exists():
        warm_package(folder, prepare=prepare)
    recorder = Recorder()
    report = run_cells(cells, services(folder), recorder, jobs=jobs, processes=processes)
    return list(report.results), [event[1] for event in recorder.events if event[0] == "note"]


def parents(folder: Path) -> list[str]:
    """The warm worker that each log names, in the order of the cells' ids; "" for a process of its own."""
    heads = [path.read_text().splitlines()[0] for path in sorted((folder / "out" / "cells").rglob("*.log"))]
    return [head.partition("# forked from process ")[2] for head in heads]


def told(folder: Path, seed: int) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "scratch" / f"told-{seed}").read_text())
    return found


def test_a_cell_finds_nothing_of_the_one_before_it(tmp_path: Path) -> None:
    """What it finds is what a process of its own finds: no patch, no variable, no thread, no file.

    Its random numbers are others.
    """
    results, notes = run(tmp_path, [cell("tells", seed=1), cell("spoils"), cell("tells", seed=2)])
    run(tmp_path, [cell("tells", seed=3)], processes="fresh")
    before, after, fresh = (told(tmp_path, seed) for seed in (1, 2, 3))

    assert [result.outcome for result in results] == ["pass"] * 3
    assert notes == []
    assert len({*parents(tmp_path)}) == 2, "three cells of one worker, and one of none"
    assert len({found.pop("random") for found in (before, after, fresh)}) == 3  # type: ignore[type-var]  # floats
    places = [found.pop("variables") for found in (before, after, fresh)]
    assert [set(place) for place in places] == [set(places[0])] * 3  # type: ignore[call-overload]  # dicts
    assert before.pop("as the kernel has it") == ["000001"]
    assert after.pop("as the kernel has it") == ["000003"]
    assert fresh.pop("as the kernel has it") == ["000001"]
    assert before == after == fresh
    assert before["setting"] == "as imported"
    assert all(before[name] is True for name in ("in work", "temporary", "group", "arguments"))


def test_processes_that_a_cell_leaves_behind_are_gone(tmp_path: Path) -> None:
    results, _ = run(tmp_path, [cell("spoils"), cell("forks-a-daemon")])
    pids = [int((tmp_path / "scratch" / name).read_text()) for name in ("left", "daemon")]

    assert [result.outcome for result in results] == ["pass", "pass"]
    assert wait_until(lambda: not any(alive(pid) for pid in pids), seconds=3)


def test_a_worker_whose_home_a_cell_has_changed_is_replaced(tmp_path: Path) -> None:
    results, notes = run(tmp_path, [cell("passes"), cell("writes-home"), cell("passes", seed=1)])
    third, first, second = parents(tmp_path)  # by name: passes…+seed=1, passes…, writes-home…

    assert [result.outcome for result in results] == ["pass"] * 3
    assert first == second != third
    assert notes == [
        f"{results[0].cell.stack.id}: a cell has changed the warm worker's home directory (cache); it is replaced"
    ]


def test_a_cell_that_shared_a_changed_home_runs_again(tmp_path: Path) -> None:
    """It may have found there what its neighbour kept, which it would not in a process of its own."""
    plan = [cell("keeps-at-home"), cell("looks-at-home")]
    results, notes = run(tmp_path, plan, jobs=2)
    looked = (tmp_path / "scratch" / "looked").read_text().split()

    assert [result.outcome for result in results] == ["pass", "pass"]
    assert looked[0] == "True"
    assert looked[-1] == "False"
    assert f"{plan[1].id} runs again: the home directory that it shared with others has changed (kept)" in notes


def test_a_cell_whose_worker_is_killed_runs_again(tmp_path: Path) -> None:
    results, notes = run(tmp_path, [cell("kills-its-parent-once"), cell("passes")])

    assert [result.outcome for result in results] == ["pass", "pass"]
    assert notes == [
        f"{results[0].cell.stack.id}: the warm worker is replaced: it has died",
        f"{results[0].cell_id} runs again: the warm worker has died (signal 9)",
    ]
    assert "" not in parents(tmp_path)


def test_a_cell_that_kills_its_worker_each_time_gets_a_process_of_its_own(tmp_path: Path) -> None:
    results, notes = run(tmp_path, [cell("kills-its-parent"), cell("passes")])
    own, forked = parents(tmp_path)

    assert [result.outcome for result in results] == ["pass", "pass"]
    assert [note for note in notes if "runs again" in note] == [
        f"{results[0].cell_id} runs again: the warm worker has died (signal 9)"
    ] * 2
    assert own == ""
    assert forked


def test_a_neighbour_of_a_cell_that_kills_the_worker_runs_again_and_passes(tmp_path: Path) -> None:
    results, _ = run(tmp_path, [cell("brief", seed=n) for n in range(4)] + [cell("kills-its-parent-once")], jobs=3)

    assert [result.outcome for result in results] == ["pass"] * 5


@pytest.mark.parametrize(
    ("prepare", "said", "processes"),
    [
        ("    raise ImportError('no such thing')", "ImportError: no such thing", "forked"),
        (
            "    from harness.worker.warm import RefusedError as R; raise R('cuda', 'the imports have started CUDA')",
            "the imports have started CUDA",
            "started",
        ),
        (
            (
                "    import threading\n"
                "    threading.Thread(target=time.sleep, args=(600,), daemon=True, name='idle').start()"
            ),
            "the imports left Python threads running: idle",
            "started",
        ),
        (
            "    from harness.worker.warm import RefusedError as R; raise R('fork', 'a child hangs')",
            "a child hangs",
            "started",
        ),
        (
            "    os.kill(os.getpid(), signal.SIGSEGV)",
            "the warm worker has died (signal 11), during its imports, like 2 before it",
            "forked",
        ),
        ("    raise SystemExit(3)", "the imports end the process with exit status 3", "forked"),
        (
            "    os._exit(3)",
            "the warm worker has died (exit status 3), during its imports, like 2 before it",
            "forked",
        ),
    ],
)
def test_where_there_can_be_no_worker_cells_have_processes_of_their_own(
    tmp_path: Path, prepare: str, said: str, processes: str
) -> None:
    results, notes = run(tmp_path, [cell("says-how"), cell("passes")], prepare=prepare, jobs=2)

    assert [result.outcome for result in results] == ["pass", "pass"]
    assert notes[-1] == (f"{results[0].cell.stack.id}: no warm worker, cells start processes of their own: {said}")
    assert (tmp_path / "scratch" / "how").read_text() == f"{processes} new"
    assert parents(tmp_path) == ["", ""]


def test_what_imports_print_is_no_answer(tmp_path: Path) -> None:
    noise = "    print('{\"ready\": false}', flush=True)\n    os.write(1, b'loud\\n')"
    results, notes = run(tmp_path, [cell("says-how")], prepare=noise)

    assert (results[0].outcome, notes) == ("pass", [])
    assert (tmp_path / "scratch" / "how").read_text() == "forked forked"


def test_a_stack_s_worker_ends_with_its_last_cell(tmp_path: Path) -> None:
    """Half a gigabyte each: one that no cell will ask for again is not kept."""
    warm_package(tmp_path)
    seen: list[int] = []

    class Counter(Recorder):
        def cell_stage(self, cell: Cell, stage: object) -> None:
            del stage
            if cell.recipe == "slow":
                seen.append(len(workers()))

    plan = [cell("passes"), cell("passes", seed=1), cell("slow", peft="0.18.1")]
    run_cells(plan, services(tmp_path), Counter(), jobs=1)

    assert seen == [1]
    assert workers() == []


def test_cancelling_ends_workers_and_the_waiting_for_them(tmp_path: Path) -> None:
    warm_package(tmp_path, prepare="    time.sleep(600)")
    cancelled = threading.Event()
    threading.Timer(0.7, cancelled.set).start()
    began = time.monotonic()
    with pytest.raises(Exception, match="Interrupted"):
        run_cells([cell(seed=n) for n in range(3)], services(tmp_path), Recorder(), jobs=2, cancelled=cancelled)

    assert time.monotonic() - began < 10
    assert workers() == []
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("ends_by", ["cancelled", "limit"])
def test_a_worker_that_does_not_answer_outlasts_neither_its_cells_nor_the_run(tmp_path: Path, ends_by: str) -> None:
    """A stopped worker, with a neighbour that waits for its turn to ask it."""
    warm_package(tmp_path)
    cancelled = threading.Event()
    recorder = Recorder()
    limits = Limits(seconds=1.0 if ends_by == "limit" else 600, grace=0.2, interval=0.05)
    stopped = tmp_path / "scratch" / "stopped"

    def cancel() -> None:
        if wait_until(stopped.exists, seconds=60) and ends_by == "cancelled":
            cancelled.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    plan = [cell("stops-its-parent-once"), cell("brief")]
    began = time.monotonic()
    try:
        report = run_cells(plan, services(tmp_path, limits=limits), recorder, jobs=2, cancelled=cancelled)
    except RunInterruptedError:
        assert ends_by == "cancelled"
        assert not [event for event in recorder.events if event[0] == "note" and "runs again" in event[1]]
    else:
        assert [result.outcome for result in report.results] == ["pass", "pass"]
        assert f"{plan[0].id} runs again: the warm worker does not answer" in [event[-1] for event in recorder.events]
    canceller.join()

    assert time.monotonic() - began < 20
    assert workers() == []


def test_a_worker_that_takes_too_long_to_import_is_given_up(tmp_path: Path) -> None:
    """As a cell in a process of its own would be, which then reports it as its own."""
    warm_package(tmp_path, prepare="    time.sleep(600)")
    recorder = Recorder()
    limits = Limits(seconds=1.0, grace=0.2, interval=0.05)
    report = run_cells([cell("passes")], services(tmp_path, limits=limits), recorder)

    assert report.results[0].outcome == "pass"
    assert [event[1] for event in recorder.events if event[0] == "note"] == [
        f"{cell().stack.id}: no warm worker, cells start processes of their own: the imports had not ended after 1 s"
    ]


def test_what_changes_in_a_home_is_seen(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (home.home / "cache").mkdir()
    (home.home / "cache" / "kept").write_text("1")
    (home.home / "cache" / "gone").write_text("1")
    (home.home / "cache" / "edited").write_text("1")
    home.remember()
    assert home.changed() == []
    (home.home / "cache" / "gone").unlink()
    (home.home / "cache" / "edited").write_text("2")
    os.utime(home.home / "cache" / "edited", ns=(1, 1))
    (home.home / "new").mkdir()
    (home.home / "link").symlink_to(tmp_path)

    assert home.changed() == ["cache/edited", "cache/gone", "link", "new"]


def test_a_fork_that_fails_is_an_error_of_its_cell_alone(tmp_path: Path) -> None:
    third = (
        "    real, count = os.fork, iter((1, 0, 1, 1, 1))\n"
        "    def fork():\n"
        "        if next(count):\n            return real()\n"
        "        raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "    os.fork = fork"
    )
    results, notes = run(tmp_path, [cell("passes", seed=seed) for seed in range(3)], prepare=third)
    first, _, last = parents(tmp_path)

    assert [result.outcome for result in results] == ["pass", "error", "pass"]
    assert results[1].reason == "a fork of the warm worker cannot be started: Resource temporarily unavailable"
    assert notes == []
    assert first == last != ""


def test_a_cell_that_closes_its_output_ends_as_a_cell(tmp_path: Path) -> None:
    results, notes = run(tmp_path, [cell("closes-its-output"), cell("passes")])
    first, second = parents(tmp_path)

    assert [result.outcome for result in results] == ["pass", "pass"]
    assert (notes, first) == ([], second)


@pytest.mark.parametrize("kind", ["pipe", "endless"])
@pytest.mark.timeout(60)
def test_an_observation_that_cannot_be_read_to_its_end_is_none(tmp_path: Path, kind: str) -> None:
    """Whoever opens a pipe that nobody writes to waits for ever, with the cell's time limit or without."""
    results, _ = run(tmp_path, [cell(f"makes-its-observation-{kind}"), cell("passes")])

    assert [result.outcome for result in results] == ["error", "pass"]
    assert str(results[0].reason).startswith("the worker wrote no observation")


@pytest.mark.parametrize("what", ["no-json", "no-object", "an-answer", "half", "deep"])
def test_what_a_cell_writes_to_its_parent_s_channel_is_no_answer(tmp_path: Path, what: str) -> None:
    """It is seen, and costs the worker; the cell runs again, and so does its neighbour."""
    results, notes = run(tmp_path, [cell(f"writes-to-the-channel-{what}"), *(cell("brief", seed=n) for n in (1, 2))])

    assert [result.outcome for result in results] == ["pass"] * 3
    assert any("something else than the warm worker has written to its channel" in note for note in notes)


def test_what_a_killed_run_left_is_in_nobody_s_way(tmp_path: Path) -> None:
    """With --keep, the directories of runs are made in one place."""
    left = tmp_path / "scratch" / "warm-1"
    left.mkdir(parents=True)
    warm_package(tmp_path)
    report = run_cells([cell("passes")], services(tmp_path), Recorder(), keep=True)

    assert report.results[0].outcome == "pass"
    assert sorted(path.name for path in (tmp_path / "scratch").iterdir()) == ["qwen3_moe", "warm-1"]


def test_a_child_can_be_killed_before_it_leads_a_group(tmp_path: Path) -> None:
    """The order to kill may follow the fork at once; the worker must not stumble over a group that is not there yet."""
    package = warm_package(tmp_path)
    home = Home(tmp_path)
    environment = child_environment(scratch=home.home, threads=1, device="cpu", prefix=tmp_path)
    command = (sys.executable, "-I", "-u", str(package / "worker" / "__main__.py"), "--warm", "cpu", "1")
    (tmp_path / "harness").symlink_to(package)  # where the bundle has it
    asked = {"cell": {"recipe": "hangs"}, "observation": str(tmp_path / "observation.json"), "work": str(tmp_path)}
    (tmp_path / "request.json").write_text(json.dumps(asked))
    label = secrets.token_hex(8)  # closing a worker kills what carries its token, on the whole machine
    worker = WarmWorker(WorkerSpec(command=command, environment=environment, token=f"{label}.w00001", home=home))
    try:
        assert worker.wait_until_ready(threading.Event(), 60) is None
        codes = []
        for number in range(1, 30):
            child = worker.fork(
                number,
                request=tmp_path / "request.json",
                work=tmp_path,
                log=tmp_path / "log",
                environment={**environment, TOKEN: f"{label}.{number:06}"},
                patience=Patience(cancelled=threading.Event(), until=time.monotonic() + 60),
            )
            child.signal_group(signal.SIGKILL)
            codes.append(child.reap())
    finally:
        worker.close()

    assert codes == [-signal.SIGKILL] * 29
    assert not home.root.exists()


def workers() -> list[int]:
    """Warm workers of this process, cells forked from them left out."""
    mine = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"--warm" in (entry / "cmdline").read_bytes().split(b"\0"):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                mine += [int(entry.name)] if parent == os.getpid() else []
        except (FileNotFoundError, ProcessLookupError):
            continue
    return mine


def cell_processes() -> dict[int, int]:
    """ProcessOrigin that lead a cell: number of the cell to process id."""
    found = {}
    for worker in workers():
        children = Path(f"/proc/{worker}/task/{worker}/children")
        for pid in children.read_text().split() if children.exists() else []:
            try:
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            for variable in variables:
                name, _, token = variable.decode().partition("=")
                number = token.rpartition(".")[2]
                if name == TOKEN and number.isdigit():
                    found[int(number)] = int(pid)
    return found


@pytest.mark.timeout(300)
def test_fifty_kills_lose_nothing_but_the_cells_they_hit(tmp_path: Path) -> None:
    """At random moments, of cells and of the workers that they were forked from, in turn."""
    rng = random.Random(20261127)  # noqa: S311 - moments, no secrets
    warm_package(tmp_path)
    plan = [cell("brief", seed=seed, peft=peft) for seed in range(60) for peft in ("0.18.1", "0.19.1")]
    recorder = Recorder()
    hit: set[int] = set()
    kills = {"cell": 0, "worker": 0}
    done = threading.Event()

    def kill() -> None:
        while not done.is_set() and sum(kills.values()) < 50:
            done.wait(rng.uniform(0.01, 0.25))
            what = "cell" if sum(kills.values()) % 2 else "worker"
            if what == "worker" and (found := workers()):
                _kill(rng.choice(found))
                kills["worker"] += 1
            elif what == "cell" and (cells := cell_processes()):
                number = rng.choice(sorted(cells))
                _kill(cells[number])
                hit.add(number)
                kills["cell"] += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        report = run_cells(plan, services(tmp_path), recorder, jobs=3)
    finally:
        done.set()
        killer.join()
    order = [event[1] for event in recorder.events if event[0] == "cell_started"]
    hit_ids = {order[number - 1] for number in hit}
    crashed = {result.cell_id for result in report.results if result.outcome != "pass"}

    assert kills["worker"] >= 10
    assert kills["cell"] >= 10
    assert [result.cell_id for result in report.results] == [each.id for each in plan]
    assert crashed <= hit_ids
    assert {result.outcome for result in report.results} == {"pass", "crash"}
    assert all(result.stage in {"import", "train", "controls"} for result in report.results if result.stage)
    assert workers() == []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_a_kept_work_directory_is_that_of_the_run_that_counts(tmp_path: Path) -> None:
    warm_package(tmp_path)
    run_cells([cell("kills-its-parent-once")], services(tmp_path), Recorder(), keep=True)
    kept = tmp_path / "scratch" / "qwen3_moe" / cell("kills-its-parent-once").file_stem

    assert json.loads((kept / "observation.json").read_text())["done"] is True
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["qwen3_moe"]
    assert {path.name for path in kept.parent.iterdir()} == {"killed", kept.name}


def test_variables_that_imports_set_are_those_of_a_process_of_its_own(tmp_path: Path) -> None:
    prepare = (
        "    os.environ.update(SET='1', CACHE=os.environ['HOME'] + '/inductor', LC_ALL='C')\n"
        "    del os.environ['OMP_NUM_THREADS']"
    )
    run(tmp_path, [cell("tells", seed=1)], prepare=prepare)
    found = told(tmp_path, 1)["variables"]
    assert isinstance(found, dict)

    assert (found["SET"], found["LC_ALL"]) == ("1", "C")
    assert found["CACHE"] == f"{found['HOME']}/inductor"
    assert "/cell-" in found["HOME"]
    assert "OMP_NUM_THREADS" not in found


def test_variables_of_a_worker_are_those_of_its_cells_but_for_their_directories(tmp_path: Path) -> None:
    """Libraries read some variables when they are loaded, so a worker must have been started with the cells' own."""
    first = child_environment(scratch=tmp_path / "a", threads=1, device="cpu", prefix=tmp_path)
    warm_package(tmp_path, prepare="    Path(os.environ['TMPDIR'], 'seen').write_text(json.dumps(dict(os.environ)))\n"
                 "    Library.setting = dict(os.environ)")  # fmt: skip
    run_cells([cell("tells")], services(tmp_path), Recorder())
    found = told(tmp_path, 0)
    worker, mine = found["setting"], found["variables"]

    assert isinstance(worker, dict)
    assert isinstance(mine, dict)
    assert {name for name in first if worker[name] != mine[name]} == {"HOME", "TMPDIR"}
