"""The tables of the documentation that the contract decides: outcomes, stages, checks, cell fields.

The faults have a say in one: which checks no control must be noticed by.

``python -m harness.report.contract_tables --write`` puts them between their marks in the pages. ``--check`` says
whether they are what the contract says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from harness.contract import checks, outcomes, stages
from harness.contract.cell_fields import DEFAULTS, MEANINGS
from harness.faults import MergeFault, fault, fault_names
from harness.report.pipe_table import pipe_table

PAGES = (Path("docs/explanation/verdicts.md"), Path("docs/reference/result.md"))


def _code(names: Iterable[object]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def outcome_table() -> str:
    """Return the outcomes, worst first."""
    return pipe_table(("outcome", "meaning"), [(f"`{name}`", outcomes.MEANINGS[name]) for name in outcomes.OUTCOMES])


def stage_table() -> str:
    """Return the stages in order, with what each needs."""
    return pipe_table(
        ("stage", "what happens", "needs"),
        [(f"`{name}`", stage.does, _code(stage.needs)) for name, stage in stages.TABLE.items()],
    )


def check_table() -> str:
    """Return the checks by stage, with the gate that each belongs to and what shows that it sees anything."""
    rows: list[tuple[str, ...]] = [
        (f"`{check.name}`", check.stage, check.gate, check.passes_when, "; ".join(guards_of(check)))
        for check in checks.TABLE
    ]
    control = checks.find(f"{checks.CONTROL}x", "controls")
    rows.append((f"`{checks.CONTROL}<fault>`", control.stage, control.gate, control.passes_when, ""))
    return pipe_table(("name", "stage", "part of", "passes when", "its control, which it must reject"), rows)


def guards_of(check: checks.Check) -> tuple[str, ...]:
    """Return what a check must reject in every cell that it applies to: its own control, and faults that are ones."""
    own = () if check.control is None else (check.control,)
    faults = ((name, fault(name)) for name in fault_names())
    controls = ((name, it) for name, it in faults if isinstance(it, MergeFault) and it.control)
    return (*own, *(f"`{name}`" for name, it in controls if f"{check.stage}/{check.name}" in it.noticed_by))


def cell_field_table() -> str:
    """Return the fields of a cell beside its stack."""
    return pipe_table(
        ("field", "default", "meaning"),
        [(f"`{name}`", _code([DEFAULTS[name]] if name in DEFAULTS else []), words) for name, words in MEANINGS.items()],
    )


TABLES: Mapping[str, Callable[[], str]] = {
    "outcomes": outcome_table,
    "stages": stage_table,
    "checks": check_table,
    "cell fields": cell_field_table,
}
"""By the name between the marks ``<!-- name -->`` and ``<!-- /name -->``."""


def with_tables(page: str, tables: Mapping[str, Callable[[], str]] = TABLES) -> str:
    """Return a page with every table between its marks made anew.

    Raises:
        ValueError: a mark is not closed.
    """
    for name, table in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if start in page:
            head, rest = page[: page.index(start) + len(start)], page[page.index(end) :]
            page = f"{head}\n{table()}\n{rest}"
    return page


def misplaced(pages: Iterable[str], tables: Iterable[str] = tuple(TABLES)) -> list[str]:
    """Return what is wrong with where tables stand: each is to be in exactly one page, once."""
    text = "\n".join(pages)
    found = {name: text.count(f"<!-- {name} -->") for name in tables}
    return [f"the table of {name} stands in {count} places, not in one" for name, count in found.items() if count != 1]


def renew(
    pages: Iterable[Path],
    tables: Mapping[str, Callable[[], str]],
    *,
    command: str,
    arguments: Sequence[str] | None,
) -> int:
    """Run a command that writes or checks the tables of some pages.

    Args:
        pages: the pages.
        tables: by the name between their marks.
        command: how it is called, ``python -m harness.report.contract_tables``.
        arguments: its own, ``--check`` or ``--write``; None: those of the process.

    Returns:
        0, or 1 when ``--check`` finds a page that is not up to date or a table has no one place.
    """
    parser = argparse.ArgumentParser(prog=command)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="exit 1 when a page is not up to date")
    action.add_argument("--write", action="store_true", help="write the pages")
    options = parser.parse_args(arguments)
    texts = {path: path.read_text(encoding="utf-8") for path in pages}
    problems = misplaced(texts.values(), tables)
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    stale = int(bool(problems))
    for path, text in texts.items():
        wanted = with_tables(text, tables)
        if options.write:
            path.write_text(wanted, encoding="utf-8")
        elif text != wanted:
            stale = 1
            sys.stderr.write(f"{path} is not up to date: {command} --write\n")
    return stale


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 when ``--check`` finds a page that says something else than the contract."""
    return renew(PAGES, TABLES, command="python -m harness.report.contract_tables", arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
