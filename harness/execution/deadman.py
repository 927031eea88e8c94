"""A watchdog for the case that nothing else can handle: the harness itself is killed while cells are running.

Every process of a cell carries ``HARNESS_CELL_TOKEN`` in its environment, ``<run>.<number>``. What makes environments
carries ``<run>``. The watchdog is a small
process in a session of its own that holds the reading end of a pipe. When the pipe closes, the harness is gone,
whichever way it went. Then every process that carries the run's token is killed. A normal end closes the pipe too.
Nothing is left then, and the watchdog just leaves.

The same search by token finds what escapes from a cell's process group, as a daemon does that has called ``setsid``. It
does not find a process that was started with a clean environment. While the harness lives, such a one is found in the
process tree, see ``supervise``. When the harness is killed outright, it is not found.

This file is started by path with ``python -I -S``, so it uses the standard library only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TOKEN = "HARNESS_CELL_TOKEN"  # noqa: S105  # not a secret: a label on processes
_ROUNDS = 100
_PAUSE = 0.02


def carriers(token: str) -> list[int]:
    """Return the ids of running processes of this user whose token is ``token``, or ``token`` and a dot and more."""
    exact = f"{TOKEN}={token}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, or is somebody else's; a zombie's environment reads as empty
        if any(name == exact or name.startswith(exact + b".") for name in variables):
            found.append(int(entry.name))
    return found


def kill_carriers(token: str) -> int:
    """Kill every process that carries ``token`` until none is left; return how many there were.

    A process may fork between the search and the kill, so the search is repeated. One in an uninterruptible system call
    cannot be killed at once. It is given two seconds and then left to the kernel, which has the signal already.
    """
    killed: set[int] = set()
    for _ in range(_ROUNDS):
        found = carriers(token)
        if not found:
            break
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended by itself
            killed.add(pid)
        time.sleep(_PAUSE)
    return len(killed)


class Deadman:
    """The watchdog of one run, as a context manager in the harness.

    Within the block the token is a variable of the harness. So what the harness starts carries it: uv, which makes
    environments, and a probe for a GPU. The harness itself does not, by the rule of ``carriers``: the kernel shows the
    variables that a process was started with.
    """

    def __init__(self, run_token: str) -> None:
        self._token = run_token

    def __enter__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self._token],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Without a token of its own, or the search would find it.
            env={name: value for name, value in os.environ.items() if name != TOKEN},
            start_new_session=True,  # Ctrl-C on the terminal must not reach it before it has done its work
        )
        self._before = os.environ.get(TOKEN)
        os.environ[TOKEN] = self._token

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        if self._before is None:
            del os.environ[TOKEN]
        else:
            os.environ[TOKEN] = self._before


def main(token: str) -> None:
    """Wait until standard input closes, then kill what carries ``token``."""
    while sys.stdin.buffer.read(4096):
        pass
    kill_carriers(token)


if __name__ == "__main__":
    main(sys.argv[1])
