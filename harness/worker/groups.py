"""Processes for groups of stages where none can be forked. All are started ahead, and each waits imported for its turn.

Imports take most of a new process's time. So they overlap with the work of the groups before. A GPU machine has the
cores for it. A process that waits has imported the libraries and no more, so it holds of the GPU what that import took.
One that has done its part is ended before the next begins, and with it everything that it had on the device.

The process that starts them imports nothing but the standard library.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from harness.worker.cell import GROUPS, IMPORT
from harness.worker.channel import take_channel
from harness.worker.checkpoints.family import build
from harness.worker.checkpoints.geometry import geometry
from harness.worker.import_order import choose_another
from harness.worker.libraries import import_libraries
from harness.worker.observation import Observation, StageStoppedError
from harness.worker.processes import record_end
from harness.worker.request import Request, read_request
from harness.worker.steps import Step, run_step

_TICK = 0.05
MAIN = Path(__file__).with_name("__main__.py")
FIRST = 0
"""The group whose process records the import stage. The others import ahead, which is nobody's stage."""


class StartedAhead:
    """Each group of steps in a process of its own."""

    def __init__(
        self, observation: Observation, request: Request, *, count: int = len(GROUPS), main: Path = MAIN
    ) -> None:
        """Start them all.

        Args:
            observation: the cell's record, which is on disk when this returns.
            request: the cell's request, which is on disk.
            count: how many groups there are.
            main: the file that a group's process is started with.
        """
        observation.save()
        self._observation = observation
        self._request = request
        self._start = partial(_started, request, main, count)
        self._waiting = self._start()

    def import_libraries(self) -> None:
        """Import in the first group's process. Where only another order works, all of them begin again with that.

        Raises:
            StageStoppedError: the import has failed, or has ended the process.
        """
        self._run(self._waiting[FIRST], IMPORT)
        if not self._observation.completed("import") and choose_another(self._observation, self._request) is not None:
            self.close()
            self._waiting = self._start()
            self._run(self._waiting[FIRST], IMPORT)
        if not self._observation.completed("import"):
            raise StageStoppedError("import")

    @contextmanager
    def group(self, number: int) -> Iterator[Callable[[Step], None]]:
        """Let the group's process take its turn. Where a step ends it, a new one does what is left."""
        group = self._waiting[number]
        try:
            yield lambda step: self._run(group, step)
        finally:
            group.end()

    def close(self) -> None:
        """End those whose turn has not come."""
        for group in self._waiting:
            group.end()

    def _run(self, group: _Group, step: Step) -> None:
        self._observation.save()
        code = group.run(step)
        through = code is None
        record_end(self._observation, code or 0, names=step.stages, expected=(0,) if through else ())


def _started(request: Request, main: Path, count: int) -> list[_Group]:
    return [_Group(number, request, main) for number in range(count)]


class _Group:
    """The process of one group, replaced when it has died."""

    def __init__(self, number: int, request: Request, main: Path) -> None:
        self._command = [sys.executable, "-I", "-u", str(main), "--group", str(number), str(request.file)]
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)

    def run(self, step: Step) -> int | None:
        """Have a step run; return None when the process has said that it is through, else how the process ended."""
        if self._has_ended():
            self.end()
            self._process = self._start()
        orders, answers = self._process.stdin, self._process.stdout
        if orders is None or answers is None:
            raise ValueError("started without pipes")
        try:
            orders.write(f"{step.stages[0]}\n".encode())
            orders.flush()
        except BrokenPipeError:
            return self._end_of_process()
        # The process too is looked at: what it has started may hold its end of the pipe after it.
        while not select.select([answers], [], [], _TICK)[0]:
            if self._has_ended():
                return self._end_of_process()
        return None if answers.readline() else self._end_of_process()

    def _has_ended(self) -> bool:
        """Whether the process has ended. It is not reaped: until then its group's id is nobody else's."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _end_of_process(self) -> int:
        """Wait until the process has ended by itself, end what it leaves behind, and return its exit code."""
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self._kill()
        return self._process.returncode

    def _kill(self) -> None:
        """Kill the process and its descendants, and wait until the device has it back."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def end(self) -> None:
        """End the process, whatever it does, and what it has started, and wait until the device has it back."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # an order that was never read
        self._kill()


def serve_group(number: int, path: Path) -> None:
    """Be the process of a group: import, then run each step whose first stage is named on standard input."""
    orders, answers = take_channel()
    request = read_request(path)
    os.chdir(request.work)
    steps: dict[str, Step] = {step.stages[0]: step for step in (IMPORT, *GROUPS[number])}
    checkpoint = build(request.family, geometry(request.geometry), request.variant)
    imported = False
    if number != FIRST:
        import_libraries(threads=request.threads, device=request.device, first=request.import_first)
        imported = True
    for line in orders:
        step = steps[line.decode().strip()]
        if step is not IMPORT and not imported:
            import_libraries(threads=request.threads, device=request.device, first=request.import_first)
        imported = True
        try:
            run_step(step, Observation.load(request.observation), request, checkpoint)
        except StageStoppedError as error:
            # The exception's frames hold the models of the stage, and so their memory on the device.
            traceback.clear_frames(error.__traceback__)
        answers.write(b"\n")
        answers.flush()
