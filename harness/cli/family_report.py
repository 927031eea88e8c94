"""Makes the table of families from the results of a run.

``harness matrix --profile families --out RESULTS``, then
``python -m harness.cli.family_report RESULTS --write reports/families/families.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.errors import HarnessError
from harness.execution.loading import load_results
from harness.report.families import family_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or an error's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.cli.family_report", description="Make the table of families."
    )
    parser.add_argument("results", nargs="+", type=Path, help="result files or output directories")
    parser.add_argument("--write", type=Path, help="the file to write; absent: the terminal")
    options = parser.parse_args(arguments)
    try:
        table = family_table(load_results(options.results))
    except HarnessError as error:
        sys.stderr.write(f"{error.message}\n")
        return error.exit_code
    if options.write is None:
        sys.stdout.write(table)
        return 0
    options.write.parent.mkdir(parents=True, exist_ok=True)
    options.write.write_text(table, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
