"""What a worker is asked: one JSON file, the whole of what it knows about its cell.

The worker reads it with the standard library alone, so the file holds plain values and paths. Nothing is looked up
again on the other side. Both sides are of one release: the worker's code lies where its contents say (``bundle``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.contract.cell_fields import MEANINGS
from harness.contract.processes import Processes
from harness.execution.files import write_atomically
from harness.matrix.cell import Cell


@dataclass(frozen=True, kw_only=True)
class WorkerRequest:
    """One cell's request.

    Attributes:
        cell: the cell.
        work: an empty directory of the cell's own, the worker's current directory.
        bands: the bands of the cell's dtype and engine, JSON values by name.
        threads: how many threads each process of the cell may compute with.
        processes: where its stages run; it does not decide what they find.
    """

    cell: Cell
    work: Path
    bands: Mapping[str, object] = field(default_factory=dict)
    threads: int = 1
    processes: Processes = "forked"

    @property
    def observation(self) -> Path:
        """The file that the worker rewrites after each stage."""
        return self.work / "observation.json"

    def to_json(self) -> str:
        """Return the request as the worker reads it."""
        cell = self.cell.model_dump(mode="json")
        return json.dumps(
            {
                # Not the stack: a worker observes what is installed instead of believing what should be.
                "cell": {name: cell[name] for name in MEANINGS},
                "work": str(self.work),
                "observation": str(self.observation),
                "bands": dict(self.bands),
                "threads": self.threads,
                "processes": self.processes,
            },
            indent=1,
            sort_keys=True,
            allow_nan=False,
        )

    def write(self) -> Path:
        """Write the request into the work directory and return its path."""
        path = self.work / "request.json"
        write_atomically(path, self.to_json().encode())
        return path
