"""``harness audit``, imports aside: the function that the command calls, with the threads that the command sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load() -> dict[str, str]:
    """Import everything that auditing imports."""
    import torch

    import harness.merge.auditing.walk

    torch.set_num_threads(1)  # as harness.merge.auditing.command
    return {"torch": torch.__version__, "audit": harness.merge.auditing.walk.__name__}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Audit ``merged`` against ``base`` and ``adapter``."""
    from harness.merge import audit

    report = audit(Path(request["base"]), Path(request["adapter"]), Path(request["merged"]))
    return {"exit_code": report.exit_code}
