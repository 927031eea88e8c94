"""``harness report``: results in, one table out, in every format."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.execute import judged
from harness.cli.options import BaselineOption, ConfigOption, ExpectationsOption
from harness.cli.setup import console, load_setup
from harness.counting import counted
from harness.errors import ConfigurationError
from harness.execution.loading import load_found, load_passed
from harness.report.table import not_run
from harness.report.terminal import print_table
from harness.report.write import write_report


def report(
    results: Annotated[list[Path], typer.Argument(help="Result files, or directories that hold them.")],
    out: Annotated[Path, typer.Option("--out", help="Where the report is written.")],
    config: ConfigOption = None,
    expectations: ExpectationsOption = None,
    baseline: BaselineOption = None,
) -> None:
    """Write the version-compat report of finished results: Markdown, HTML, JSON, CSV and JUnit.

    Statuses are judged anew, against the expectations of today. A cell that was planned there and has no result is in
    the report as not run. Exits with 1 on a failure that nobody declared, an unexpected pass or a cell that was not
    run.

    Example: [bold]harness report results --out reports/default[/]
    """
    setup = load_setup(config, expectations)
    found = load_found(results)
    counts = Counter(result.cell_id for result in found.results)
    twice = [cell_id for cell_id, count in counts.items() if count > 1]
    if twice:
        # Choosing one, even the newest, could hide a failure of the other.
        raise ConfigurationError(
            f"{counted(len(twice), 'cell has', 'cells have')} more than one result; the first is {twice[0]}.",
            remedy="Name the results of one run, or of shards that share no cell.",
        )
    rows = judged(setup, found.results, passed_before=load_passed(baseline or ())) + [
        not_run(cell, "a run that planned it ended before it had a result", options=setup.options)
        for cell in found.planned.values()
    ]
    try:
        paths = write_report(rows, out, generated=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    except OSError as error:
        raise ConfigurationError(f"--out {out}: {error.strerror}.", remedy="Give another directory.") from error
    screen = console()
    print_table(screen, rows)
    if found.planned:
        screen.print(
            f"not run: {counted(len(found.planned), 'cell')} planned and without a result. The command that planned "
            f"them does the rest. Remove {next(iter(found.planned))} and the like "
            "where nobody wants them.",
            markup=False,
            soft_wrap=True,
        )
    screen.print("written: " + ", ".join(str(path) for path in paths), soft_wrap=True)
    raise typer.Exit(int(not all(row.as_expected for row in rows)))
