"""``published-costs.json``: what cells cost on the machine that the published reports were made on.

``python -m harness.matrix.published --write`` makes it anew from ``reports/*/report.json``, ``--check`` says whether it
is what they say. A cell that the machine ended, or that never began, would cost something else, so it is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.matrix.costs import PUBLISHED

REPORTS = Path("reports")
OF_THE_MACHINE = frozenset({"crash", "oom", "timeout", "unresolvable", "environment", "skipped"})
"""Outcomes that say nothing of what a cell costs."""


def render_costs(reports: Path = REPORTS) -> str:
    """Return the file: seconds (a tenth) and MiB by the id of a cell, a line each, sorted."""
    found: dict[str, tuple[float, int]] = {}
    for path in sorted(reports.glob("*/report.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            result = row["result"]
            seconds, peak = result["timings"].get("cell"), result.get("peak_rss_mb")
            if result["outcome"] not in OF_THE_MACHINE and seconds is not None and peak is not None:
                found.setdefault(row["cell"], (round(seconds, 1), round(peak)))
    lines = [f" {json.dumps(cell_id)}: {json.dumps(cost)}" for cell_id, cost in sorted(found.items())]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 when ``--check`` finds that the file is not up to date."""
    parser = argparse.ArgumentParser(prog="python -m harness.matrix.published", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="exit 1 when the file is not up to date")
    action.add_argument("--write", action="store_true", help="write the file")
    options = parser.parse_args(arguments)
    text = render_costs()
    if options.write:
        PUBLISHED.write_text(text, encoding="utf-8")
    elif not PUBLISHED.is_file() or PUBLISHED.read_text(encoding="utf-8") != text:
        sys.stderr.write(f"{PUBLISHED.name} is not up to date: python -m harness.matrix.published --write\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
