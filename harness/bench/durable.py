"""Making a directory tree durable, for those who do not do it themselves; standard library only."""

from __future__ import annotations

import os
from pathlib import Path


def sync_tree(root: Path) -> None:
    """Flush every file below ``root`` to the disk, then every directory, and the name of ``root`` itself."""
    directories = [root.parent]
    for folder, _, names in os.walk(root):
        directories.append(Path(folder))
        for name in names:
            _sync(Path(folder) / name, os.O_RDONLY)
    for directory in reversed(directories):
        _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
