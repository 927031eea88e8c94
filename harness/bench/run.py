"""A run, from settings to a report: readable top to bottom."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from harness.bench.case import Step, case_names, load_case, usual_cases
from harness.bench.lab import Lab
from harness.bench.machine import describe
from harness.bench.report import render
from harness.bench.settings import Settings
from harness.bench.store import Store
from harness.errors import ConfigurationError, UnknownNameError

REPORT = "report.md"
ROOM = 2.3
"""How many times its size a checkpoint takes at most: base, adapter and one output."""

OUTPUTS = 6.5
"""As above at the first size, where one output of each contender lies there at the same time."""


class Screen(Protocol):
    """Shows where the run is."""

    def begin(self, step: str, units: int) -> None:
        """A step begins."""
        ...

    def tick(self) -> None:
        """A unit of it is done."""
        ...

    def end(self, *, taken_over: bool) -> None:
        """It is finished, now or in an earlier run."""
        ...


def choose(only: Sequence[str]) -> tuple[str, ...]:
    """Return the cases to run, in their order; all of them are those that need nothing special.

    Raises:
        UnknownNameError: there is no such case.
    """
    known = case_names()
    for name in only:
        if name not in known:
            raise UnknownNameError("case", name, known, where="--only")
    return tuple(name for name in known if name in only) if only else usual_cases()


def check_ready(work: Path, settings: Settings) -> None:
    """Refuse what would fail after half an hour.

    Raises:
        ConfigurationError: no torch or safetensors here, or no room on the disk.
    """
    missing = [name for name in ("torch", "safetensors", "numpy") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"The bench needs {', '.join(missing)} beside the harness.", remedy="`nox -s bench` installs everything."
        )
    work.mkdir(parents=True, exist_ok=True)
    needed = max(OUTPUTS * settings.sizes[0], *(ROOM * size for size in settings.sizes))
    free = shutil.disk_usage(work).free
    if free < needed:
        raise ConfigurationError(
            f"The bench needs {needed / 1e9:.0f} GB at {work}, and {free / 1e9:.0f} GB are free there.",
            remedy="Name another folder with --workdir, or smaller checkpoints with --size.",
        )


def run_bench(
    settings: Settings,
    *,
    only: Sequence[str],
    out: Path,
    work: Path,
    command: str,
    resume: bool,
    keep: bool,
    python: Path | None = None,
    screen: Screen,
    log: Callable[[str], None],
) -> list[Path]:
    """Measure and write ``results.json`` and ``report.md`` into ``out``; return their paths.

    Args:
        settings: what and how often.
        only: names of cases; none for all.
        out: where results go, those in progress too.
        work: a folder of the bench's own for checkpoints and outputs.
        command: as the report shows it.
        resume: take over finished steps of an interrupted run of the same settings, code and machine.
        keep: leave ``work`` there.
        python: an interpreter that sees a GPU, for the cases that need one.
        screen: shows progress.
        log: receives lines for people.

    Raises:
        ConfigurationError: something that is needed is not there.
    """
    cases = choose(only)
    check_ready(work, settings)
    lab = Lab(work / "bench", settings, log, python=python)
    heading = {
        "settings": settings.to_json(),
        "cases": list(cases),
        "machine": describe(work),
        "code_sha256": lab.code_sha256,
        "command": command,
    }
    store = Store(out, heading, resume=resume)
    try:
        for name in cases:
            steps: list[Step] = load_case(name).steps(settings)
            for step in steps:
                screen.begin(step.name, step.units)
                taken_over = step.name in store.steps
                if not taken_over:
                    store.keep(step.name, step.measure(lab, screen.tick))
                screen.end(taken_over=taken_over)
            lab.forget()
    finally:
        if not keep:
            shutil.rmtree(work / "bench", ignore_errors=True)
    results = store.finish()
    (out / REPORT).write_text(render(results), encoding="utf-8")
    return [out / "results.json", out / REPORT]
