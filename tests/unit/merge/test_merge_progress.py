"""Progress in a log: a line when both half a minute and a twentieth of the bytes have gone by."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from harness.cli.progress_lines import ProgressLines

GB = 10**9


def told(seconds: float, total: int, *, first: int = 0) -> list[tuple[float, str]]:
    """Return (second, line) of a merge that takes so long, at even speed, heard of a hundred times."""
    lines: list[tuple[float, str]] = []
    now = 0.0
    progress = ProgressLines("merging", lambda line: lines.append((now, line)), clock=lambda: now)
    for step in range(101):
        now = step * seconds / 100
        progress.update(first + (total - first) * step // 100, total)
    return lines


def test_what_is_soon_done_says_nothing() -> None:
    assert told(29, 30 * GB) == []


def test_a_minute_or_two_has_a_line_every_half_minute() -> None:
    lines = told(200, 100 * GB)

    assert [second for second, _ in lines] == [30, 60, 90, 120, 150, 180]
    assert lines[0][1] == "merging: 15 % (15.0 GB of 100.0 GB), 500.0 MB/s, 0:02:50 left"


def test_hours_have_a_line_every_twentieth() -> None:
    lines = told(10 * 3600, 2000 * GB)

    assert [second for second, _ in lines] == [1800 * number for number in range(1, 21)]
    assert lines[9][1].endswith("5:00:00 left")


def test_speed_does_not_count_what_was_there_before() -> None:
    lines = told(100, 100 * GB, first=50 * GB)

    assert lines[0][1] == "merging: 65 % (65.0 GB of 100.0 GB), 500.0 MB/s, 0:01:10 left"


def test_the_lines_go_to_standard_error_where_it_is_no_terminal(tmp_path: Path) -> None:
    """A program of three events stands in for the engine, and half a minute is made a moment."""
    events = [{"event": "progress", "done": done, "total": 100} for done in (0, 50, 100)] + [{"event": "report"}]
    engine = tmp_path / "engine.py"
    engine.write_text("".join(f"print({json.dumps(event)!r}, flush=True)\n" for event in events))
    program = (
        "import sys, time; from rich.console import Console\n"
        "from harness.cli import engine, progress_lines\n"
        "progress_lines.SECONDS = 0\n"
        f"engine.run_engine([sys.executable, {str(engine)!r}], Console(stderr=True), 'merging')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert [line.split(",")[0] for line in done.stderr.splitlines()] == [
        "merging: 50 % (50 bytes of 100 bytes)",
        "merging: 100 % (100 bytes of 100 bytes)",
    ]
    assert done.stdout == ""
