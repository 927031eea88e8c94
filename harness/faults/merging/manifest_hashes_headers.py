"""The manifest's SHA-256 of an adapter covers its header alone, to be quicker with large files.

All adapters of one shape have the same. Nobody can tell from a merge which of them it holds.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

LENGTH = 8


def plant(patches: ExitStack) -> None:
    """Leave the data of safetensors files out of the digest."""
    from harness.merge.run import manifest

    def make(original: Any) -> Any:
        def sha256_of(path: Path) -> str:
            if path.suffix != ".safetensors":
                return str(original(path))
            with path.open("rb") as file:
                length = file.read(LENGTH)
                return hashlib.sha256(length + file.read(int.from_bytes(length, "little"))).hexdigest()

        return sha256_of

    replace(patches, manifest, "sha256_of", make)


FAULT: Fault = LibraryFault(
    breaks="writes digests of headers for digests of adapters into the manifest",
    noticed_by=frozenset({"compare/claims"}),
    plant=plant,
)
