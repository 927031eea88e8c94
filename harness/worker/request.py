"""The request that the host writes: what to run, where, and against which bands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.contract.bands import Bands
from harness.contract.cell_fields import CellFields
from harness.contract.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Request(CellFields):
    """One cell, as the worker sees it.

    Attributes:
        work: the cell's directory, empty at first.
        observation: the file that is rewritten after each stage.
        threads: how many threads each process of the cell may compute with.
        bands: what the checks are held against.
    """

    work: Path
    observation: Path
    threads: int
    bands: Bands
    processes: Processes = "forked"
    """Whether stages run in processes that are forked after the imports, or in some that are started.

    See ``harness.worker.run``.
    """

    import_first: str = "peft"
    """Which of the libraries is imported first (``harness.worker.import_order``)."""
    import_failure: str | None = None
    """Why the usual order of imports failed; None where it is the usual one."""

    @property
    def file(self) -> Path:
        """The request itself, where the host writes it."""
        return self.work / "request.json"

    @property
    def base(self) -> Path:
        """The base checkpoint's directory."""
        return self.work / "base"

    @property
    def adapter(self) -> Path:
        """The saved adapter's directory."""
        return self.work / "adapter"

    @property
    def merged(self) -> Path:
        """The merged checkpoint's directory."""
        return self.work / "merged"


def read_request(path: Path) -> Request:
    """Read a request file.

    Raises:
        OSError: the file cannot be read.
        KeyError, TypeError, json.JSONDecodeError: it is no request.
    """
    data: dict[str, Any] = json.loads(path.read_text())
    return Request(
        **data["cell"],
        work=Path(data["work"]),
        observation=Path(data["observation"]),
        threads=int(data["threads"]),
        bands=Bands(**data["bands"]),
        processes=data["processes"],
        **{name: data[name] for name in ("import_first", "import_failure") if name in data},
    )
