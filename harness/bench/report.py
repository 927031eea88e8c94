"""``report.md`` from ``results.json``; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from harness.bench.case import case_names, load_case
from harness.bench.section import Goal, Section, Table
from harness.bench.settings import Settings, size_text

START, END = "<!-- bench -->", "<!-- /bench -->"
"""Around the goals, for whoever shows them elsewhere."""

NOT_MEASURED = "not measured"


def settings_of(results: Mapping[str, Any]) -> Settings:
    """Return the settings that results were measured with."""
    kept = results["settings"]
    return Settings(**{**kept, "sizes": tuple(kept["sizes"])})


def sections(results: Mapping[str, Any]) -> list[Section]:
    """Return the section of every case that was asked for."""
    settings = settings_of(results)
    return [load_case(name).section(results["steps"], settings) for name in case_names() if name in results["cases"]]


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _pipe(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    align = ["left", *("right" for _ in head[1:])]
    cells = [[_cell(cell) for cell in row] for row in rows]
    return tabulate(cells, headers=head, tablefmt="pipe", disable_numparse=True, colalign=align)


def goals_table(goals: Sequence[Goal]) -> str:
    """Return the table of goals, each with what was measured."""
    rows = [(goal.what, goal.wanted, goal.measured or NOT_MEASURED, verdict(goal)) for goal in goals]
    return _pipe(("what", "goal", "measured", ""), rows)


def verdict(goal: Goal) -> str:
    """Return what a goal came to, in words."""
    return "reached" if goal.reached else "**not reached**"


def _table(table: Table) -> Iterator[str]:
    if table.rows:
        yield f"**{table.title}**"
        yield _pipe(table.head, table.rows)


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    yield from section.how
    for table in section.tables:
        yield from _table(table)
    if section.notes:
        yield "\n".join(f"- {note}" for note in section.notes)


def machine_words(machine: Mapping[str, Any]) -> str:
    """Return the machine in a sentence."""
    return (
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gib']} GiB of memory,"
        f" {machine['file_system']} on a {machine['disk']};"
        f" Python {machine['python']}, torch {machine['torch']}."
    )


def render(results: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    settings = settings_of(results)
    parts = sections(results)
    goals = [goal for part in parts for goal in part.goals]
    reached = sum(goal.reached for goal in goals)
    sizes = " and ".join(size_text(size) for size in settings.sizes)
    words = ["# Merge engine, audit and expert runtime, measured"]
    if settings.quick:
        words.append(
            "**A smoke run on small checkpoints: it shows that the bench works, and its numbers mean nothing.**"
        )
    words += [
        f"**{reached} of {len(goals)} goals reached.** {machine_words(results['machine'])}",
        f"Made by `{results['command']}`: qwen3_moe with 128 experts in six shards, {sizes}, bf16, adapters of rank"
        " 16. All numbers are of one run" + (", which was interrupted and went on." if results["resumed"] else "."),
        START,
        goals_table(goals),
        END,
        *(paragraph for part in parts for paragraph in _section(part)),
    ]
    return "\n\n".join(words) + "\n"


def overview(report: str) -> str:
    """Return the goals' table out of a report.

    Raises:
        ValueError: there is none in it.
    """
    return report[report.index(START) + len(START) : report.index(END)].strip()
