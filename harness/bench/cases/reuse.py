"""A profile of which nothing has changed: how long does it take to run it again, every result being kept?"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from harness.bench.case import Found, Step, Tick
from harness.bench.cases.cells import QUICK_CELLS
from harness.bench.lab import Lab
from harness.bench.process import MeasurementError
from harness.bench.section import Goal, Section, Table, bounded
from harness.bench.settings import Settings

ORDER = 10
ASKED_FOR = True
"""The first run of a profile may have to run all of it."""

ROUNDS = 5
SECONDS = 5.0


def steps(settings: Settings) -> list[Step]:
    """Return one step: a run that keeps results, then runs that reuse them."""
    count = 2 if settings.quick else ROUNDS
    select = QUICK_CELLS if settings.quick else ("*",)
    return [Step(name="reuse", units=1 + count, measure=partial(_measure, select=select, count=count))]


def _measure(lab: Lab, tick: Tick, *, select: tuple[str, ...], count: int) -> dict[str, Any]:
    """Return what the first run took and what each of the following took, with how many cells each of them ran."""
    runs = []
    for _ in range(1 + count):
        runs.append(_run(lab, select))
        tick()
    return {"first": runs[0], "again": runs[1:]}


def _run(lab: Lab, select: tuple[str, ...]) -> dict[str, Any]:
    """Run the cells into a new directory.

    Raises:
        MeasurementError: the run did not end as a run of a matrix does.
    """
    out = lab.output("reuse")
    words = [word for glob in select for word in ("--select", glob)]
    started = time.perf_counter()
    command = [sys.executable, "-m", "harness", "matrix", "--out", str(out), *words]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if ran.returncode not in {0, 1}:
        raise MeasurementError(f"harness matrix ended with exit code {ran.returncode}: {ran.stderr[-400:]}")
    found = {"seconds": seconds, **counts(out)}
    lab.remove(out)
    return found


def counts(out: Path) -> dict[str, int]:
    """Return how many cells a run had, and how many of them it ran itself."""
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    cells = int(report["summary"]["cells"])
    return {"cells": cells, "ran": cells - len(report["reused"])}


def section(found: Found, settings: Settings) -> Section:  # noqa: ARG001 - every case has the same signature
    """Return the section."""
    ran = found.get("reuse")
    return Section(
        title="A profile of which nothing has changed",
        how=(
            (
                "`harness matrix` over the default profile, again and again, each time into a new directory: whole"
                " commands, the report included. The first may run cells; the others reuse what it has kept. A cell"
                " whose outcome says something of the machine (a crash, memory, time) is not kept and runs each time."
            ),
        ),
        goals=_goals(ran),
        tables=(
            Table(
                title="Runs of the default profile",
                head=("run", "cells", "of them run", "seconds"),
                rows=() if ran is None else _rows(ran),
            ),
        ),
    )


def _goals(ran: dict[str, Any] | None) -> tuple[Goal, ...]:
    again = [] if ran is None else ran["again"]
    slowest = max((run["seconds"] for run in again), default=None)
    most = max((float(run["ran"]) for run in again), default=None)
    return (
        bounded("running an unchanged default profile again, slowest", slowest, SECONDS, "s"),
        bounded("cells of it that are run again", most, 0.0, "cells"),
    )


def _rows(ran: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    named = [("first", ran["first"]), *(("again", run) for run in ran["again"])]
    return tuple((name, str(run["cells"]), str(run["ran"]), f"{run['seconds']:.1f}") for name, run in named)
