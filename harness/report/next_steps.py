"""What can be done about cells that are not as they should be: looked into, declared, reported; pure."""

from __future__ import annotations

from collections.abc import Iterable

from harness.report.look import severity
from harness.report.table import Row, Standing

FAILED: frozenset[Standing] = frozenset({"new", "regression"})
"""What may be a library's fault, or ours."""
LACKING: frozenset[Standing] = frozenset({"unresolvable", "unsupported"})
"""What a stack says of itself in a sentence: there is nothing to look into. The machine's fault says what to do."""
READ = "docs/how-to/read-a-failing-cell.md"
DECLARE = "docs/how-to/declare-a-known-failure.md"


def next_steps(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Return what to do, as a word and a sentence each; nothing where no cell asks for it.

    The command is of the worst cell: it runs anew and keeps what it worked on.
    """
    rows = sorted(rows, key=severity)
    failed = [row for row in rows if row.standing in FAILED]
    steps = []
    if failed:
        steps += [
            ("look", f"{failed[0].reproduce} --keep --fresh"),
            ("", f"runs it anew and keeps base, adapter and merged, as far as it gets: {READ}"),
            ("report", f"what nobody knows yet, with its result, its log and its line to reproduce: {READ}#report-it"),
        ]
    if any(row.standing in FAILED | LACKING for row in rows):
        steps.append(("declare", f"what is known and not yours to mend: {DECLARE}"))
    if any(row.standing == "unexpected-pass" for row in rows):
        steps.append(("undeclare", f"what no longer fails: remove or narrow its declaration: {DECLARE}"))
    return steps
