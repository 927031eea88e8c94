"""Shows the published goals in README: ``python -m harness.bench.readme --write`` puts them there, ``--check`` says
whether they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.bench.report import END, START, overview

README = Path("README.md")
REPORT = Path("reports/bench/report.md")
NOTHING_YET = "No run has been published yet."


def shown(readme: str, report: str | None) -> str:
    """Return README with the goals of ``report`` between its marks, or a sentence where there is no report.

    Raises:
        ValueError: README has no marks.
    """
    head, rest = readme[: readme.index(START) + len(START)], readme[readme.index(END) :]
    return f"{head}\n{overview(report) if report is not None else NOTHING_YET}\n{rest}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 when ``--check`` finds that README shows something else."""
    parser = argparse.ArgumentParser(prog="python -m harness.bench.readme", description="Show the goals in README.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="exit 1 when README shows something else")
    action.add_argument("--write", action="store_true", help="write README")
    parser.add_argument("--readme", type=Path, default=README, help="where it is (default: %(default)s)")
    parser.add_argument("--report", type=Path, default=REPORT, help="what it shows (default: %(default)s)")
    options = parser.parse_args(arguments)
    readme: Path = options.readme
    report = options.report.read_text(encoding="utf-8") if options.report.is_file() else None
    text = readme.read_text(encoding="utf-8")
    wanted = shown(text, report)
    if options.write:
        readme.write_text(wanted, encoding="utf-8")
        return 0
    if text == wanted:
        return 0
    sys.stderr.write(f"{readme} does not show what was measured: python -m harness.bench.readme --write\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
