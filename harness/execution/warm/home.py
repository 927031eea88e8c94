"""A warm worker's directory: its log, and the home directory that libraries remember from their import.

``HF_HOME`` and its like are read once, when a library is imported. What a cell keeps there, the next would find. So the
directory is compared after each cell with what it was after the imports. A worker whose home has changed is replaced.
Cells that ran there beside each other meanwhile run again, because any of them may have found what another had kept.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

Listing = dict[str, tuple[int, int, int]]
"""Path relative to the home, to type, size and time of the last change in nanoseconds.

Of directories the type alone.
"""


class Home:
    """The directory of one worker. ``root`` holds ``home``, which is what libraries see, and ``log``."""

    def __init__(self, place: Path) -> None:
        """Make it below ``place``, under a name that no other has: a run that was killed may have left its own.

        Raises:
            OSError: it cannot be made.
        """
        self.root = root = Path(tempfile.mkdtemp(prefix="warm-", dir=place))
        self.home = root / "home"
        self.log = root / "log"
        self.home.mkdir()
        self._before: Listing = {}

    def remove(self) -> None:
        """Remove it."""
        shutil.rmtree(self.root, ignore_errors=True)

    def remember(self) -> None:
        """The imports are done: this is how it should stay."""
        self._before = listing(self.home)

    def changed(self) -> list[str]:
        """Return what is no longer as it was, or is new, or is gone: paths relative to the home, sorted."""
        now = listing(self.home)
        return sorted(name for name in self._before.keys() | now.keys() if self._before.get(name) != now.get(name))


def listing(directory: Path) -> Listing:
    """Return what lies in a directory and below; links are not followed."""
    found: Listing = {}
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = Path(folder, name)
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue  # it went while we looked
            kind = stat.S_IFMT(status.st_mode)
            details = (0, 0) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)
            found[path.relative_to(directory).as_posix()] = (kind, *details)
    return found
