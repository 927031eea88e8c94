"""A result that is worth keeping, and keys for it, without a process or an environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from execution_helpers import cell, child_environment

from harness.contract.stages import STAGES
from harness.execution.fingerprint import Fingerprints
from harness.execution.services import CellSettings
from harness.execution.supervise import Limits
from harness.matrix.cell import Cell
from harness.result import CellResult, StageResult

STARTED = "2026-11-25T10:00:00+00:00"


def a_result(of: Cell | None = None, **changes: Any) -> CellResult:
    """A pass, as far as the cache is concerned."""
    one = of or cell("lora")
    stages = {name: StageResult(result="pass", seconds=1.0) for name in STAGES}
    result = CellResult(
        cell=one, cell_id=one.id, outcome="pass", seed=one.seed, stages=stages, started=STARTED, log="cells/x.log"
    )
    return result.model_copy(update=changes)


def with_stage(result: str, reason: str | None = None, *, raised: bool = False) -> CellResult:
    """A result whose training ended so."""
    made = a_result()
    made.stages["train"] = StageResult.model_validate({"result": result, "reason": reason, "raised": raised})
    return made


def fingerprints(*, code: str = "c", bands: dict[str, object] | None = None, **limits: Any) -> Fingerprints:
    """Gives keys for one code, one set of bands, one set of limits."""
    settings = CellSettings(limits=Limits(**{"seconds": 60.0, **limits}), bands=bands or {"kl_max": 1e-9}, threads=1)
    return Fingerprints(code_sha256=code, settings=lambda _cell: settings, child_environment=child_environment)


def entry_of(root: Path, key: str) -> Path:
    """The file of a kept result."""
    return root / key[:2] / f"{key}.json"
