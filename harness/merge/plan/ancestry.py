"""What a base says that it is made of.

Merging an adapter into a base that already holds it is seldom meant, and nothing in the shapes shows it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.merge.adapter.adapter import ADAPTER_CONFIG, Adapter
from harness.merge.base.checkpoint import MANIFEST_FILE
from harness.merge.errors import InputRefusedError
from harness.merge.files.json_file import read_object


def ancestry_notes(base: Path, adapters: Sequence[Adapter]) -> list[str]:
    """Return a note where the base is itself the output of this engine, by its manifest, and names the adapters that it
    holds already.

    Tensor data is read only of an adapter whose configuration is one that the manifest has.
    """
    try:
        manifest = read_object(base / MANIFEST_FILE)
    except InputRefusedError:
        return []  # none, or one that says nothing
    known = [entry for entry in _entries(manifest) if isinstance(entry, dict)]
    held = [lora.root.name for lora in adapters if any(_is(lora, entry) for entry in known)]
    if held:
        return [
            f"the base already holds {', '.join(held)}, by its {MANIFEST_FILE}: the deltas count a second time here"
        ]
    return [f"the base is itself a merge, by its {MANIFEST_FILE}, of another adapter"] if known else []


def _entries(manifest: Mapping[str, Any]) -> list[Any]:
    several = manifest.get("adapters")
    return several if isinstance(several, list) else [manifest.get("adapter")]


def _is(lora: Adapter, entry: dict[str, Any]) -> bool:
    return _sha256(lora.root / ADAPTER_CONFIG) == entry.get("config_sha256") and _sha256(lora.file.path) == entry.get(
        "sha256"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
