"""Warm workers with real libraries: cells do not touch each other, and each way to run a cell says the same."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from real_stacks import NEWEST, STANDARD
from rich.console import Console

import harness
from harness.envs import cache_dir, child_environment, ensure_environment
from harness.envs.environment import Environment
from harness.execution.deadman import TOKEN
from harness.execution.observer import RunReport
from harness.execution.progress import PlainProgress
from harness.execution.request import WorkerRequest
from harness.execution.runner import ProcessOrigin
from harness.execution.scheduler import run_cells
from harness.execution.services import CellSettings, Services
from harness.execution.supervise import Limits
from harness.execution.warm.home import Home
from harness.execution.warm.worker import Patience, WarmWorker, WorkerSpec
from harness.matrix.catalogue import read_catalogue
from harness.matrix.cell import Cell
from harness.matrix.config import load_config
from harness.matrix.locate import find_config
from harness.matrix.plan import one_cell
from harness.result import CellResult

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PROGRAM = Path(__file__).with_name("warm_program.py")
IMPORTS = Path(__file__).with_name("imports_program.py")
CONFIG = load_config(find_config(), read_catalogue())


def environment(stack_id: str) -> Environment:
    return ensure_environment(next(stack for stack in CONFIG.declared if stack.id == stack_id))


@dataclass
class Spoiler:
    """A warm worker whose cells spoil or tell."""

    worker: WarmWorker
    folder: Path
    prefix: Path
    label: str
    count: int = 0

    def run(self, what: str) -> dict[str, Any]:
        """Run one cell to its end; return what it told."""
        self.count += 1
        work = self.folder / f"cell-{self.count}"
        (work / "tmp").mkdir(parents=True)
        request = work / "request.json"
        request.write_text(json.dumps({"do": what, "to": str(work / "told")}))
        variables = child_environment(scratch=work / "tmp", prefix=self.prefix)
        child = self.worker.fork(
            self.count,
            request=request,
            work=work,
            log=work / "log",
            environment={**variables, TOKEN: f"{self.label}.{self.count:06}"},
            patience=Patience(cancelled=threading.Event(), until=time.monotonic() + 300),
        )
        code = child.reap()
        assert code == 0, (work / "log").read_text()
        told: dict[str, Any] = json.loads((work / "told").read_text()) if what == "tell" else {}
        return told


@pytest.fixture(params=[STANDARD, NEWEST])
def spoiler(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spoiler]:
    """One worker for each of two stacks."""
    made = environment(request.param)
    home = Home(tmp_path)
    label = secrets.token_hex(8)  # closing a worker kills what carries its token, on the whole machine
    spec = WorkerSpec(
        command=(str(made.python), "-I", "-u", str(PROGRAM), str(Path(harness.__file__).parents[1])),
        environment=child_environment(scratch=home.home, prefix=made.prefix),
        token=f"{label}.w00001",
        home=home,
    )
    worker = WarmWorker(spec)
    try:
        assert worker.wait_until_ready(threading.Event(), 300) is None, home.log.read_text()
        yield Spoiler(worker=worker, folder=tmp_path, prefix=made.prefix, label=label)
    finally:
        worker.close()


def test_a_cell_finds_the_libraries_as_they_were_imported(spoiler: Spoiler) -> None:
    before = spoiler.run("tell")
    spoiler.run("spoil")
    after = spoiler.run("tell")

    assert before.pop("random") != after.pop("random")
    assert before.pop("numpy") != after.pop("numpy")
    assert before.pop("torch") != after.pop("torch"), "torch too seeds itself anew in every process"
    assert before.pop("directory") is after.pop("directory") is True
    assert before == after
    assert before["methods"] == [False, False]
    assert before["threads"] == 1, "a fork takes no thread with it"
    assert spoiler.worker.spec.home.changed() == []


def run(folder: Path, cells: list[Cell], *, processes: ProcessOrigin, jobs: int = 1) -> RunReport:
    """Run cells as the command does, in one of the ways."""
    services = Services(
        prepare=ensure_environment,
        child_environment=child_environment,
        settings=lambda cell: CellSettings(
            limits=Limits(seconds=300, memory_mb=8192), bands=CONFIG.bands[cell.dtype].model_dump(), threads=1
        ),
        cache=cache_dir(),
        out=folder / "out",
        scratch=folder / "scratch",
    )
    return run_cells(cells, services, PlainProgress(Console()), processes=processes, jobs=jobs)


def a_cell(stack_id: str, *, family: str = "qwen3_moe", recipe: str = "lora", seed: int = 0) -> Cell:
    stack = next(stack for stack in CONFIG.declared if stack.id == stack_id)
    return one_cell(read_catalogue(), stack, family=family, recipe=recipe, device="cpu", seed=seed)


@pytest.mark.parametrize(
    ("stack_id", "recipe"),
    [(STANDARD, "lora"), pytest.param(NEWEST, "qlora4", marks=pytest.mark.nightly)],
)
def test_each_way_to_run_a_cell_gives_the_same_result(stack_id: str, recipe: str, tmp_path: Path) -> None:
    """Forked by a warm worker, in a process of its own, and with a process for each group of stages, as on a GPU."""
    ways: tuple[ProcessOrigin, ...] = ("warm", "fresh", "started")
    found = {way: run(tmp_path / way, [a_cell(stack_id, recipe=recipe)], processes=way).results[0] for way in ways}

    assert {way: result.outcome for way, result in found.items()} == dict.fromkeys(ways, "pass")
    assert said(found["warm"]) == said(found["fresh"]) == said(found["started"])
    logs = {way: (tmp_path / way / "out" / str(result.log)).read_text() for way, result in found.items()}
    assert "# forked from process" in logs["warm"].splitlines()[0]
    assert "# forked from process" not in logs["fresh"] + logs["started"]


def said(result: CellResult) -> dict[str, object]:
    """What a result says of its cell: everything but times, memory and where its log lies."""
    told = result.model_dump(exclude={"timings", "peak_rss_mb", "log", "started"})
    for stage in told["stages"].values():
        del stage["seconds"]
    for name in ("engine_seconds", "engine_peak_memory_mb"):
        del told["merge"][name]
    return told


@pytest.mark.parametrize(
    ("stack_id", "recipe"),
    [(STANDARD, "lora"), pytest.param(NEWEST, "qlora4", marks=pytest.mark.nightly)],
)
def test_children_import_next_to_nothing_again(stack_id: str, recipe: str, tmp_path: Path) -> None:
    """Else a cell spends its time on what its warm worker is there for. A new lazy import of a library shows here."""
    made = environment(stack_id)
    request = WorkerRequest(
        cell=a_cell(stack_id, recipe=recipe), work=tmp_path, bands=CONFIG.bands["float32"].model_dump()
    )
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [made.python, "-I", IMPORTS, Path(harness.__file__).parents[1], request.write(), tmp_path / "seen"],
        env=child_environment(scratch=tmp_path / "tmp", prefix=made.prefix),
        check=False,
        capture_output=True,
        text=True,
    )
    seen = dict(json.loads(line) for line in (tmp_path / "seen").read_text().splitlines())

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert list(seen) == ["import", "build", "load", "reload-adapter", "merge", "reload-merged", "compare", "controls"]
    assert {stage: names for stage, names in seen.items() if len(names) > 3} == {}
    assert [name for names in seen.values() for name in names if name.startswith("harness.")] == []


KILLS = 50


@pytest.mark.nightly
def test_fifty_kills_of_real_cells_and_workers_lose_nothing_but_the_cells_they_hit(tmp_path: Path) -> None:
    plan = [a_cell(STANDARD, recipe=recipe, family=family, seed=seed)
            for seed in range(12) for family in ("qwen3_moe", "glm4_moe")
            for recipe in ("lora", "lora-attention", "lora-experts")]  # fmt: skip
    rng = random.Random(20261127)  # noqa: S311 - moments, no secrets
    done = threading.Event()
    hit: list[str] = []

    def kill() -> None:
        while not done.wait(rng.uniform(0.2, 2.0)) and len(hit) < KILLS:
            found = tokens()
            # A worker that is struck while it imports has no cells. After a few of those none ever gets to work.
            ready = any(not token.rpartition(".")[2].startswith("w") for token in found)
            wanted = "w" if ready and rng.random() < 0.3 else ""
            choice = [token for token in found if token.rpartition(".")[2].startswith("w") == bool(wanted)]
            if ready and choice:
                hit.append(rng.choice(choice))
                os.kill(found[hit[-1]], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        report = run(tmp_path, plan, processes="warm", jobs=2)
    finally:
        done.set()
        killer.join()
    numbers = {token.rpartition(".")[2] for token in hit}
    lost = {result.cell_id for result in report.results if result.outcome != "pass"}
    stricken = {each.id for number, each in enumerate(plan, 1) if f"{number:06}" in numbers}

    assert len(hit) == KILLS, "the plan is to last longer than the kills"
    assert any(number.startswith("w") for number in numbers)
    assert len(report.results) == len(plan)
    assert lost <= stricken
    assert {result.outcome for result in report.results} <= {"pass", "crash", "oom", "error"}


def tokens() -> dict[str, int]:
    """A process for each token among the descendants of this one: a warm worker, or one of a cell's.

    Never anybody else's: another run on this machine labels its processes with the same variable.
    """
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            token = process.environ().get(TOKEN)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if token is not None:
            found[token] = process.pid
    return found
