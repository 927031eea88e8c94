"""Merging against other mergers, on the same checkpoint with the same adapter."""

from __future__ import annotations

from typing import Any

from harness.bench.case import Found, Step, Tick
from harness.bench.cases.copy import compared, peak, times
from harness.bench.lab import Lab, contender
from harness.bench.section import Section, Table, at_least, interval
from harness.bench.settings import Settings, size_text

ORDER = 2
OURS = "reference"
GOALS = {"peft": 8.0, "unsloth_zoo": 4.0}
"""How many times faster ours is to be than each."""


def steps(settings: Settings) -> list[Step]:
    """Return the one series, all contenders interleaved."""
    size = settings.sizes[0]

    def measure(lab: Lab, tick: Tick) -> dict[str, Any]:
        series = lab.series((OURS, *GOALS), size, "experts", "warm", settings.rounds, tick)
        return {"series": series, "versions": {name: lab.versions.get(name, {}) for name in (OURS, *GOALS)}}

    return [Step(name="others/experts", units=settings.rounds, measure=measure)]


def section(found: Found, settings: Settings) -> Section:
    """Return the section."""
    result = found.get("others/experts", {"series": {}, "versions": {}})
    series = result["series"]
    lines, notes = [], []
    for name in (OURS, *GOALS):
        runs = series.get(name)
        highest = peak(runs)
        ratio = compared(series, name, OURS) if name != OURS else None
        lines.append((
            titled(name, result["versions"].get(name, {})),
            times(series, name),
            times(series, name, "process_seconds"),
            "-" if highest is None else f"{highest:.0f}",
            interval(ratio) if ratio else "-",
        ))  # fmt: skip
        if isinstance(runs, dict):
            notes.append(f"{contender(name).TITLE} failed: `{runs['failed']}`")
    goals = tuple(
        at_least(f"{contender(name).TITLE} / ours, imports aside", compared(series, name, OURS), goal)
        for name, goal in GOALS.items()
    )
    return Section(
        title="Merging against other mergers",
        how=(
            (
                f"The {size_text(settings.sizes[0])} checkpoint, every expert tensor changes, page cache warm,"
                f" {settings.rounds} interleaved rounds. Each contender runs in an"
                " environment and a process of its own, loads the model and the adapter where it needs them, and its"
                " output is synced."
            ),
        ),
        goals=goals,
        tables=(
            Table(
                title="Contenders",
                head=("contender", "imports aside, s", "whole process, s", "peak above imports, MiB", "times ours"),
                rows=tuple(lines),
            ),
        ),
        notes=tuple(notes),
    )


def titled(name: str, versions: dict[str, str]) -> str:
    """Return a contender's title with the versions that matter."""
    module = contender(name)
    known = [f"{package} {versions[package]}" for package in module.VERSIONED if package in versions]
    return f"{module.TITLE} ({', '.join(known)})" if known else str(module.TITLE)
