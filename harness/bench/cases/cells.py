"""Cells in warm workers beside the same cells in fresh processes.

How long does a run take, and are the results the same?
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from harness.bench.case import Found, Step, Tick
from harness.bench.lab import Lab
from harness.bench.pairs import rounds
from harness.bench.process import MeasurementError
from harness.bench.section import Goal, Section, Table, at_least, bounded
from harness.bench.settings import Settings
from harness.bench.statistics import estimate, ratios
from harness.contract.stages import WORKER_STAGES

ORDER = 7
ASKED_FOR = True
"""`nox -s bench` asks for it by itself: its report stands apart from that of the merge engine."""

WAYS = {"warm": (), "fresh": ("--fresh-processes",)}
ROUNDS = 1
"""A pair takes ten minutes, and its two sides differ by more than a machine's noise."""

FASTER = 2.5
OVERHEAD = 1.0
"""Seconds of a warm cell that are not its own stages."""

QUICK_CELLS = ("qwen3_moe/lora@tf5.5.0-*", "glm4_moe/lora@tf5.5.0-*")


def steps(settings: Settings) -> list[Step]:
    """Return one step: interleaved runs of the same cells."""
    count = 1 if settings.quick else ROUNDS
    select = QUICK_CELLS if settings.quick else ("*",)
    return [Step(name="cells", units=len(WAYS) * count, measure=partial(_measure, select=select, count=count))]


def _measure(lab: Lab, tick: Tick, *, select: tuple[str, ...], count: int) -> dict[str, Any]:
    """Return what each run of each way took, and how the results of the two ways differ."""
    _run(lab, "warm", select)  # environments are made and byte code is compiled before anything counts
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    seen: dict[str, dict[str, Any]] = {}
    for order in rounds(list(WAYS), count):
        for way in order:
            seconds, results = _run(lab, way, select)
            found[way].append({"seconds": seconds, "cells": len(results), "overheads": _overheads(results)})
            seen[way] = results
            tick()
    return {**found, "different": different(seen["warm"], seen["fresh"])}


def _run(lab: Lab, way: str, select: tuple[str, ...]) -> tuple[float, dict[str, Any]]:
    """Run the cells one way; return the seconds and the results by cell id.

    Raises:
        MeasurementError: the run did not end as a run of a matrix does.
    """
    out = lab.output(f"cells-{way}")
    words = [word for glob in select for word in ("--select", glob)]
    command = [sys.executable, "-m", "harness", "matrix", "--out", str(out), *words, *WAYS[way]]
    started = time.perf_counter()
    ran = subprocess.run(command, check=False, capture_output=True, text=True, env=nothing_kept())
    seconds = time.perf_counter() - started
    if ran.returncode not in {0, 1}:
        raise MeasurementError(f"harness matrix ended with exit code {ran.returncode}: {ran.stderr[-400:]}")
    results = by_cell(out)
    lab.remove(out)
    return seconds, results


def nothing_kept() -> dict[str, str]:
    """Return the environment of a command that runs every cell, because it keeps no result and reuses none."""
    return {**os.environ, "MOE_LORA_HARNESS_RESULTS_SIZE": "0"}


def by_cell(out: Path) -> dict[str, Any]:
    """Return the results in an output directory by cell id: file names alone are those of every family."""
    results = [json.loads(path.read_text()) for path in sorted(out.glob("cells/*/*.json"))]
    return {result["cell_id"]: result for result in results}


def _overheads(results: dict[str, Any]) -> list[float]:
    """Return, for each cell that ran to its end, the seconds from its start to its end that none of its stages took."""
    own = [name for name in WORKER_STAGES if name != "import"]
    return [
        result["timings"]["cell"] - sum(result["stages"][name]["seconds"] or 0.0 for name in own)
        for result in results.values()
        if result["outcome"] == "pass"
    ]


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the cells whose outcome, or whether some check passed, is not the same in two runs."""
    return sorted(cell for cell in one.keys() | other.keys() if _verdict(one.get(cell)) != _verdict(other.get(cell)))


def _verdict(result: dict[str, Any] | None) -> object:
    if result is None:
        return None
    checks = sorted((check["name"], check["stage"], check["passed"]) for check in result["checks"])
    return result["outcome"], result["stage"], checks


def section(found: Found, settings: Settings) -> Section:  # noqa: ARG001 - every case has the same signature
    """Return the section."""
    ran = found.get("cells", {})
    return Section(
        title="Cells in warm workers",
        how=(
            (
                "`harness matrix` over the same cells, by warm workers (the default: one process for each environment"
                " imports the libraries once and forks every cell) and with `--fresh-processes` (every cell imports"
                " them itself). Whole commands, one after the other. *Beside its stages*: what a passing cell takes"
                " from its start to its end that none of its own stages took, imports included; the median over cells."
            ),
        ),
        goals=_goals(ran),
        tables=(
            Table(
                title="A run of the default profile",
                head=("way", "cells", "seconds", "beside its stages, s a cell"),
                rows=tuple(_row(way, ran[way]) for way in WAYS if way in ran),
            ),
        ),
        notes=_notes(ran),
    )


def _goals(ran: dict[str, Any]) -> tuple[Goal, ...]:
    faster, beside = None, None
    if ran:
        warm, fresh = ([run["seconds"] for run in ran[way]] for way in ("warm", "fresh"))
        faster = estimate(ratios(fresh, warm))
        beside = _median([value for run in ran["warm"] for value in run["overheads"]])
    return (
        at_least("seconds of a run, fresh processes / warm workers", faster, FASTER),
        bounded("a warm cell beside its own stages", beside, OVERHEAD, "s"),
    )


def _row(way: str, runs: list[dict[str, Any]]) -> tuple[str, ...]:
    seconds = ", ".join(f"{run['seconds']:.0f}" for run in runs)
    beside = _median([value for run in runs for value in run["overheads"]])
    return (way, str(runs[0]["cells"]), seconds, "-" if beside is None else f"{beside:.2f}")


def _notes(ran: dict[str, Any]) -> tuple[str, ...]:
    if not ran:
        return ()
    cells = ran["different"]
    said = "Outcomes and checks of the two ways are the same in every cell."
    return (f"Cells that ended otherwise in the two ways: {', '.join(cells)}." if cells else said,)


def _median(values: list[float]) -> float | None:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else None
