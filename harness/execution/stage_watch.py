"""Which stage a cell is in, for whoever watches: read from the file that its worker rewrites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.contract.stages import StageName
from harness.execution.files import read_if_there
from harness.execution.observation import parse_observation


class StageWatch:
    """Looks which stage a worker says it is in, and reports each once."""

    def __init__(self, observation: Path, entered: Callable[[StageName], None]) -> None:
        self._observation = observation
        self._entered = entered
        self._seen: StageName | None = None
        self._stamp: tuple[int, int] | None = None

    def __call__(self) -> None:
        """Look."""
        try:
            status = self._observation.stat()
        except OSError:
            return  # not there yet, or the cell has put something else in its way: its result will say so
        stamp = (status.st_ino, status.st_mtime_ns)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        stage = parse_observation(read_if_there(self._observation)).running
        if stage is not None and stage != self._seen:
            self._seen = stage
            self._entered(stage)
