"""The list of families with experts that this environment's transformers knows, for the host."""

from __future__ import annotations

import json
from pathlib import Path


def write_families(file: Path) -> None:
    """Write model type → why it could not be built so small, or null, as JSON.

    It is written beside its place and renamed, so that a reader finds the whole of it.
    """
    from harness.worker.introspection.catalogue import with_experts

    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(with_experts(), indent=1, sort_keys=True))
    temporary.replace(file)
