"""One warm worker, seen from the host: started, asked, ended. See ``harness.worker.warm`` for the other side.

Order and answer are a line of JSON each, one after the other, under a lock, because cells in several threads share a
worker. A worker that does not answer in time is as good as dead, and is killed. It never waits for anything itself.
So one that is asked for the end of a child has an answer at once.

A cell can open its parent's end of the channel and write there. So each order has a key, which its answer repeats. A
worker whose channel says anything else is as good as dead, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.execution import deadman
from harness.execution.child import ParentLostError
from harness.execution.suspicious_json import read_json
from harness.execution.warm.home import Home

PATIENCE = 60.0
"""Seconds for an answer. A fork of half a gigabyte takes a hundredth of one; a machine that swaps takes longer."""
GRACE = 2.0
"""Seconds for an answer, or an end, that has no reason to be waited for any longer."""
SILENT = "the warm worker does not answer"
DIED = "the warm worker has died"
GARBLED = "something else than the warm worker has written to its channel"
LONGEST = 2**20
"""Bytes of an answer; one has a hundred."""
_TICK = 0.05

RefusalKind = Literal["import", "cuda", "fork", "process"]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why an environment can have no warm worker.

    Attributes:
        kind: ``import`` (it fails, or ends the process), ``cuda`` (it starts CUDA), ``fork`` (a child forked after it
            would hang) or ``process`` (anything else of the process).
        reason: in words.
    """

    kind: RefusalKind
    reason: str


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """How a worker is started.

    Attributes:
        command: the interpreter and its arguments.
        environment: all its variables but the token.
        token: the label by which it is found, and what it forks before that has a label of its own.
        home: its directory.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    token: str
    home: Home


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a cell waits for an answer.

    Attributes:
        cancelled: set when the run is over.
        until: when the cell's time is over, by ``time.monotonic``.
    """

    cancelled: threading.Event
    until: float

    def is_over(self, asked: float) -> bool:
        """Whether an answer to what was asked at ``asked`` has been waited for long enough."""
        now = time.monotonic()
        hurry = self.cancelled.is_set() or now > self.until
        return now - asked > (GRACE if hurry else PATIENCE)


class WarmWorker:
    """A process that forks cells."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Start it; it is of use once ``wait_until_ready`` has returned None.

        Raises:
            OSError: the interpreter cannot be started.
        """
        self.spec = spec
        self._lock = threading.Lock()
        self._buffer = b""
        self._lost: str | None = None
        self._silent = False
        with spec.home.log.open("ab") as log:
            log.write(f"$ {shlex.join(spec.command)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                spec.command,
                cwd=spec.home.root,
                env={**spec.environment, deadman.TOKEN: spec.token},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait_until_ready(self, cancelled: threading.Event, seconds: float) -> Refusal | None:
        """Wait until it has imported the libraries; return why it cannot be used, None when it can.

        Raises:
            ParentLostError: it has died, or the run was cancelled; it is gone.
        """
        deadline = time.monotonic() + seconds
        try:
            with self._lock:
                answer = self._read(lambda: cancelled.is_set() or time.monotonic() > deadline)
        except ParentLostError:
            if time.monotonic() < deadline:
                raise
            return Refusal(kind="import", reason=f"the imports had not ended after {seconds:g} s")
        if not answer["ready"]:
            return Refusal(kind=answer["kind"], reason=answer["reason"])
        self.spec.home.remember()
        return None

    def fork(
        self,
        number: int,
        *,
        request: Path,
        work: Path,
        log: Path,
        environment: Mapping[str, str],
        patience: Patience,
    ) -> Forked:
        """Fork a cell's process.

        Args:
            number: names it in orders; unique to this worker.
            request: the cell's request.
            work: its current directory.
            log: where its output is appended.
            environment: all its variables, the token included.
            patience: how long answers about it are waited for.

        Raises:
            OSError: there can be no further process.
            ParentLostError: the worker is gone.
        """
        answer = self.ask(
            patience,
            order="start",
            cell=number,
            request=str(request),
            work=str(work),
            log=str(log),
            environment=dict(environment),
        )
        if "errno" in answer:
            code = int(answer["errno"])
            raise OSError(code, os.strerror(code), "a fork of the warm worker")
        return Forked(self, number, int(answer["pid"]), patience)

    def ask(self, patience: Patience, **order: Any) -> dict[str, Any]:
        """Give an order and return the answer.

        Raises:
            ParentLostError: the worker is gone, or does not answer.
        """
        asked, key = time.monotonic(), secrets.token_hex(8)
        while not self._lock.acquire(timeout=_TICK):
            if patience.is_over(asked) and self._lost is None:
                self._silent = True  # whoever waits for an answer to an order before this one will see its end
                self._process.kill()
        try:
            if self._lost is not None or self._process.stdin is None:
                raise ParentLostError(self._lost or "the warm worker has no channel")
            try:
                self._process.stdin.write(json.dumps({**order, "key": key}).encode() + b"\n")
                self._process.stdin.flush()
            except OSError as error:
                raise self._lose(DIED) from error
            answer = self._read(lambda: patience.is_over(asked))
            if answer.get("key") != key:
                raise self._lose(GARBLED)
            return answer
        finally:
            self._lock.release()

    @property
    def lost(self) -> bool:
        """Whether it is known to be gone."""
        return self._lost is not None

    def close(self) -> None:
        """End it and whatever was forked from it, and remove its directory."""
        with self._lock:
            if self._lost is None:
                self._lose("the warm worker has been ended")
        self.spec.home.remove()

    def _read(self, is_over: Callable[[], bool]) -> dict[str, Any]:
        """Read one answer, or end the worker when it ``is_over``; called with the lock held."""
        if self._process.stdout is None:
            raise ValueError("started without pipes")
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if is_over():
                raise self._lose(SILENT)
            if not select.select([descriptor], [], [], _TICK)[0]:
                continue
            content = os.read(descriptor, 65536)
            if not content:
                raise self._lose(DIED)
            self._buffer += content
            if len(self._buffer) > LONGEST:
                raise self._lose(GARBLED)
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            answer = read_json(line)
        except ValueError as error:
            raise self._lose(GARBLED) from error
        if not isinstance(answer, dict):
            raise self._lose(GARBLED)
        return answer

    def _lose(self, reason: str) -> ParentLostError:
        """End everything of it; called with the lock held. Cells find what is left of their own by their tokens."""
        if reason == DIED and self._silent:
            reason = SILENT
        if reason == DIED:  # its pipe says so, a moment before the kernel can say how
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # an order that it never read
        deadman.kill_carriers(self.spec.token)
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        self._lost = f"{reason} ({how})" if reason == DIED else reason
        return ParentLostError(self._lost)


class Forked:
    """A cell's process, forked by a worker: everything that only a parent may do is asked of it."""

    def __init__(self, worker: WarmWorker, number: int, pid: int, patience: Patience) -> None:
        self._worker = worker
        self._number = number
        self._patience = patience
        self.pid = pid

    def has_ended(self) -> bool:
        """Whether it has ended."""
        return bool(self._ask(order="look")["ended"])

    def signal_group(self, number: int) -> None:
        """Send a signal to its process group."""
        self._ask(order="signal", number=int(number))

    def reap(self) -> int:
        """Wait for its end, which has come or is about to, and let its id go."""
        while not self.has_ended():
            time.sleep(_TICK)
        return int(self._ask(order="reap")["status"])

    def _ask(self, **order: Any) -> dict[str, Any]:
        return self._worker.ask(self._patience, cell=self._number, **order)
