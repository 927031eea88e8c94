"""What decides a cell's result, as one key: whatever else changes, the cell would come to the same.

It is the sha256 of what is asked of the cell, what its environment holds (every wheel by its hash, the interpreter, the
build of torch), the code that runs in it and that concludes from what it saw, the bands and limits that it is held to,
the variables that its process gets, the kind of machine, and the schema of results. What is declared about a cell, the
threads that it computes with, where things lie and when they were asked for decide nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import harness
from harness.contract.cell_fields import MEANINGS
from harness.execution.bundle import digest
from harness.execution.machine import MachineKind, machine_kind
from harness.execution.services import CellSettings, ChildEnvironment
from harness.matrix.cell import Cell
from harness.result import CellResult

HOST_CODE = (
    "evidence.py", "execution/decision.py", "execution/finalise.py", "execution/interruption.py",
    "execution/observation.py", "execution/redact.py", "execution/request.py", "execution/suspicious_json.py",
    "result.py",
)  # fmt: skip
"""The host's part in a result: what a worker is asked, and what follows from what it saw. The rest is the bundle's."""

_NOWHERE = Path("/nowhere")


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """Gives the keys of cells.

    Attributes:
        code_sha256: the worker's code, see ``bundle``.
        settings: limits, bands and threads of a cell.
        child_environment: gives a cell's variables.
    """

    code_sha256: str
    settings: Callable[[Cell], CellSettings]
    child_environment: ChildEnvironment

    def of(self, cell: Cell, identity: str | None, machine: MachineKind | None = None) -> str | None:
        """Return the key of a cell's result, in hex; None where it is not known what decides it.

        It is not known of an interpreter that the user gave, and of a source tree, which somebody is working on.

        Args:
            cell: the cell.
            identity: what its environment holds, see ``harness.envs.venv.environment_identity``.
            machine: what kind of machine it runs on; None: on this one.
        """
        if identity is None or not all(source.reusable for source in cell.stack.sources.values()):
            return None
        parts = {
            "asked": {name: getattr(cell, name) for name in MEANINGS},
            "environment": identity,
            "code": [self.code_sha256, _host_code()],
            "settings": self.settings(cell).deciding,
            # Where a cell works and how many threads it has do not count, so they are the same here for every cell.
            "variables": self.child_environment(scratch=_NOWHERE, threads=1, device=cell.device, prefix=_NOWHERE),
            "machine": machine_kind(cell.device) if machine is None else machine,
            "schema": _schema(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def _host_code() -> str:
    package = Path(harness.__file__).parent
    return digest({name: (package / name).read_bytes() for name in HOST_CODE})


@cache
def _schema() -> str:
    """The schema of results, so that one of another shape is made again and not refused."""
    return hashlib.sha256(json.dumps(CellResult.model_json_schema(), sort_keys=True).encode()).hexdigest()
