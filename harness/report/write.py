"""Write a report in every format: the one place in this package that touches the disk.

All formats are rendered before the first file is written, and each file appears by one rename. So neither a broken row
nor an interrupted run leaves half a report or a page that contradicts its table.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.report.format import all_formats
from harness.report.table import Row


def _write_atomically(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes files that only their owner can read; a report is for sharing
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_report(rows: Sequence[Row], out: Path, *, generated: str | None = None) -> list[Path]:
    """Write the report in every format of ``harness/report/formats`` into ``out``.

    Args:
        rows: the cells, in any order.
        out: the directory; made when it is missing. Files of an earlier report are replaced, others left alone.
        generated: when the report was made, as the page should say it; None leaves it out.

    Returns:
        The paths that were written, ``report.md`` first.

    Raises:
        ValueError: when two rows are of the same cell; then nothing was written.
        OSError: when the directory or a file cannot be written.
    """
    texts = {found.file: found.render(rows, generated) for found in all_formats()}
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        _write_atomically(out / name, text)
    return [out / name for name in texts]
