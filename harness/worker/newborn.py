"""What makes a forked child as good as a new process: all that an interpreter would have got from whoever started it.

And what ends it without its parent's shutdown.

A fork copies the parent's environment, current directory, open files, session and random numbers. Each is replaced here
by the cell's own. What the imports themselves have set of the environment stays. Libraries read some of the parent's
environment when they were imported, as ``HF_HOME``. What they keep of it points into the warm worker's own home
directory, which the host compares after each cell.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from harness.worker.orphans import adopt_orphans

TOKEN = b"HARNESS_CELL_TOKEN="
_ENVIRONMENT_START, _ENVIRONMENT_END = 47, 48
"""Fields 50 and 51 of ``/proc/<pid>/stat`` (proc(5)), counted from the one after the name."""


@dataclass(frozen=True, kw_only=True)
class Birth:
    """What a cell's process begins with.

    Attributes:
        request: the request file.
        work: its current directory.
        log: where its output goes, appended.
        environment: all its variables, the token included.
    """

    request: Path
    work: Path
    log: Path
    environment: Mapping[str, str]

    @classmethod
    def read(cls, order: Mapping[str, Any]) -> Birth:
        """Read it from the host's order."""
        return cls(
            request=Path(order["request"]),
            work=Path(order["work"]),
            log=Path(order["log"]),
            environment=order["environment"],
        )


@dataclass(frozen=True, kw_only=True)
class SetByImports:
    """The variables that imports have set or removed in this process, as they would have in a new one.

    Attributes:
        changed: the new values; None for a variable that is gone.
        home: this process's own home directory, whose place in a value a cell's takes.
    """

    changed: Mapping[str, str | None]
    home: str | None

    @classmethod
    def since(cls, before: Mapping[str, str]) -> SetByImports:
        """Compare the environment with what it was before the imports."""
        names = before.keys() | os.environ.keys()
        changed = {name: os.environ.get(name) for name in names if os.environ.get(name) != before.get(name)}
        return cls(changed=changed, home=before.get("HOME"))

    def over(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return a cell's environment after the imports."""
        result = dict(environment)
        for name, value in self.changed.items():
            if value is None:
                result.pop(name, None)
            else:
                result[name] = value.replace(self.home, environment.get("HOME", self.home)) if self.home else value
        return result


class TokenError(RuntimeError):
    """This process's token cannot be rewritten: what its children leave behind could not be found."""


@dataclass(frozen=True, kw_only=True)
class TokenPlace:
    """Where in memory the kernel finds the token that ``/proc/<pid>/environ`` shows.

    The harness finds every process of a cell by the token in its environment, wherever it has gone. ``/proc`` shows the
    variables that a process was *started* with. So those of a forked child are its parent's, whatever it sets. But they
    lie in memory of the process's own, and are read there each time. A child writes another token of the same length in
    its place. It is found by that, and so is everything that it forks.
    """

    address: int
    length: int

    @classmethod
    def find(cls) -> TokenPlace:
        """Find it, and try whether it can be rewritten.

        Raises:
            TokenError: there is no token, or the kernel does not show what is written there.
        """
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        start, end = int(fields[_ENVIRONMENT_START]), int(fields[_ENVIRONMENT_END])
        block = ctypes.string_at(start, end - start) if end > start else b""
        at = (b"\0" + block).find(b"\0" + TOKEN)
        if at < 0:
            raise TokenError("this process was started without a token")
        value = block[at + len(TOKEN) :].split(b"\0", 1)[0]
        place = cls(address=start + at + len(TOKEN), length=len(value))
        place.write("x" * len(value))
        place.write(value.decode())
        return place

    def write(self, token: str) -> None:
        """Write another token of the same length, and see that the kernel shows it.

        Raises:
            TokenError: the lengths differ, or it does not.
        """
        content = token.encode()
        if len(content) != self.length:
            raise TokenError(f"the token {token!r} has not the {self.length} characters of the one it replaces")
        ctypes.memmove(self.address, content, self.length)
        if TOKEN + content not in Path("/proc/self/environ").read_bytes().split(b"\0"):
            raise TokenError("the kernel does not show a rewritten token")


def leave(code: int) -> NoReturn:
    """End this forked child, whatever has become of its output: it must never return into its parent's code."""
    try:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # gone, unwritable, closed
                stream.flush()
    finally:
        os._exit(code)


def begin_as_new(birth: Birth, token: TokenPlace, imports: SetByImports) -> None:
    """Replace in a forked child what it has of its parent.

    Raises:
        OSError, TokenError: something of it cannot be replaced.
    """
    os.setsid()  # a group of its own: it is signalled as one
    adopt_orphans()
    log = os.open(birth.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    token.write(birth.environment[TOKEN.decode().rstrip("=")])
    os.environ.clear()
    os.environ.update(imports.over(birth.environment))
    time.tzset()
    tempfile.tempdir = None  # worked out again, from the cell's own TMPDIR
    os.chdir(birth.work)
    sys.argv[1:] = [str(birth.request)]
    reseed()


def reseed() -> None:
    """Begin other random numbers in a forked child than its parent and its siblings have.

    A new process has them: Python, numpy and torch seed their generators from the system (torch 2.x,
    ``getDefaultCPUGenerator``). A stage that needs certain ones seeds them itself, before and after as now. torch's
    generators of GPUs are made when one is first used, which is after the fork.
    """
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
