"""What the checks of a cell cost: its stages now beside those of a commit that had fewer of them.

The same cells on the same stacks by the code of two commits, in turn. A cell's stages are what is compared: warm
workers, environments and imports are not what this is about.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from harness.bench.case import Found, Step, Tick
from harness.bench.cases.cells import by_cell, nothing_kept
from harness.bench.lab import Lab
from harness.bench.pairs import rounds
from harness.bench.process import MeasurementError
from harness.bench.section import Section, Table, at_most
from harness.bench.settings import Settings
from harness.bench.statistics import estimate, ratios
from harness.contract.stages import WORKER_STAGES

ORDER = 9
ASKED_FOR = True
"""It needs the history of the repository, which a shallow clone lacks."""

BEFORE = "4dd177c255"
"""The last commit in which training, generation and quantising were not judged and most checks had no control."""
ROOT = Path(__file__).parents[3]
ROUNDS = 2
MOST = 1.5
SELECT = ("*/lora@*", "*/lora-attention@*", "*/lora-experts@*")
QUICK_SELECT = ("qwen3_moe/lora@tf5.5.0-peft0.19.1-trl0.25.1",)


def steps(settings: Settings) -> list[Step]:
    """Return one step: interleaved runs of the same cells."""
    count, select = (1, QUICK_SELECT) if settings.quick else (ROUNDS, SELECT)
    return [Step(name="stage-time", units=2 * count, measure=partial(_measure, select=select, count=count))]


def _measure(lab: Lab, tick: Tick, *, select: tuple[str, ...], count: int) -> dict[str, Any]:
    """Return, for each round, what the stages of each cell took that passed by both commits: seconds by cell id."""
    sources = {"before": _checkout(lab.output("before")), "now": ROOT}
    for source in sources.values():
        _run(lab, source, select[:1])  # workers' byte code is compiled and the disk is warm before anything counts
    found: list[dict[str, dict[str, float]]] = []
    for order in rounds(list(sources), count):
        seconds = {}
        for side in order:
            seconds[side] = _run(lab, sources[side], select)
            tick()
        both = seconds["before"].keys() & seconds["now"].keys()
        found.append({cell: {side: seconds[side][cell] for side in sources} for cell in sorted(both)})
    lab.remove(sources["before"])
    return {"before": BEFORE, "rounds": found}


def _checkout(folder: Path) -> Path:
    """Write the files of the earlier commit into a folder.

    Raises:
        MeasurementError: this is no clone with that commit in its history.
    """
    command = ["git", "-C", str(ROOT), "archive", BEFORE, "harness", "matrix.toml", "expectations.toml"]
    ran = subprocess.run(command, check=False, capture_output=True)
    if ran.returncode:
        raise MeasurementError(f"git has no commit {BEFORE} here: {ran.stderr.decode()[-200:]}")
    with tarfile.open(fileobj=BytesIO(ran.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _run(lab: Lab, source: Path, select: tuple[str, ...]) -> dict[str, float]:
    """Run the cells by the code in a folder, one at a time; return the seconds of passing cells' stages by cell id.

    Raises:
        MeasurementError: the run did not end as a run of a matrix does.
    """
    out = lab.output("stage-time")
    words = [word for glob in select for word in ("--select", glob)]
    command = [sys.executable, "-m", "harness", "matrix", "--jobs", "1", "--out", str(out), *words]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=source, env=nothing_kept())
    if ran.returncode not in {0, 1}:
        raise MeasurementError(f"harness matrix ended with exit code {ran.returncode}: {ran.stderr[-400:]}")
    results = by_cell(out)
    lab.remove(out)
    stages = [name for name in WORKER_STAGES if name != "import"]
    return {
        cell: sum(result["stages"][name]["seconds"] for name in stages)
        for cell, result in results.items()
        if result["outcome"] == "pass"
    }


def section(found: Found, settings: Settings) -> Section:  # noqa: ARG001 - every case has the same signature
    """Return the section."""
    measured = found.get("stage-time", {"rounds": []})
    pairs = [pair for cells in measured["rounds"] for pair in cells.values()]
    now, before = ([pair[side] for pair in pairs] for side in ("now", "before"))
    over = estimate(ratios(now, before)) if pairs else None
    return Section(
        title="What checks cost",
        how=(
            (
                f"The same cells by the code of today and by that of {BEFORE}, which had fewer checks, in turn and one"
                " at a time. Compared are the seconds of a passing cell's own stages, imports apart."
            ),
        ),
        goals=(at_most("stages of a cell, now / before", over, MOST),),
        tables=(
            Table(
                title="Stages of a cell, means over cells",
                head=("round", "cells", "before, s", "now, s"),
                rows=tuple(_row(number, cells) for number, cells in enumerate(measured["rounds"], start=1)),
            ),
        ),
    )


def _row(number: int, cells: dict[str, dict[str, float]]) -> tuple[str, ...]:
    means = (sum(pair[side] for pair in cells.values()) / max(1, len(cells)) for side in ("before", "now"))
    return (str(number), str(len(cells)), *(f"{mean:.2f}" for mean in means))
