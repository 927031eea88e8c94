"""The table of families: one row for each, what was reached, and why it ended."""

from __future__ import annotations

from report_samples import cell, measured, stopped

from harness.report.families import family_table


def test_a_row_says_what_was_reached_and_why_it_ended() -> None:
    found = family_table(
        [
            stopped(cell("zaya"), "unsupported", "build", "no | such *family*"),
            measured(cell("mixtral")),
        ]
    )

    lines = found.splitlines()
    assert "2 families, 1 " in found
    mixtral, zaya = (next(line for line in lines if line.startswith(f"| {name} ")) for name in ("mixtral", "zaya"))
    assert lines.index(mixtral) < lines.index(zaya)
    assert mixtral.endswith("| pass |  |")
    assert "| yes |" in mixtral
    # A reason stands in a code span, in which it can be no table, link or emphasis.
    assert zaya.endswith("| no | no | no |  | unsupported | `build: no \\| such *family*` |")
