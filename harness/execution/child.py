"""A process that can be supervised.

It is one that this process has started itself, or one that a warm worker has forked for it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol


class ParentLostError(Exception):
    """The process that a child was forked from is gone: what the child came to will not be known."""


class Child(Protocol):
    """A process that leads a session of its own.

    Its end is noticed without reaping it. As long as it is a zombie, its id and that of its group cannot be given to
    anybody else. So the signals that follow cannot hit a stranger. Every method may raise ``ParentLostError``.
    """

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    def has_ended(self) -> bool:
        """Whether it has ended; it is not reaped."""
        ...

    def signal_group(self, number: int) -> None:
        """Send a signal to its process group."""
        ...

    def reap(self) -> int:
        """Wait for its end and let its id go; return the exit code, negative for the signal that killed it."""
        ...


class Started:
    """A new process."""

    def __init__(self, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], log: BinaryIO) -> None:
        """Start ``command``; its output goes to ``log``.

        Raises:
            OSError: it cannot be started.
        """
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C on the terminal reaches the harness alone, and the harness decides
        )
        self.pid = self._process.pid

    def has_ended(self) -> bool:
        """Whether it has ended."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def signal_group(self, number: int) -> None:
        """Send a signal to its process group."""
        os.killpg(self.pid, number)

    def reap(self) -> int:
        """Wait for its end; return its exit code."""
        return self._process.wait()
