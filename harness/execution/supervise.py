"""One child process, from its start to the certainty that nothing of it is left.

The child leads a session of its own, so that Ctrl-C on the terminal reaches the harness alone and the harness decides.
It ends in one of these ways. It exits, or a signal kills it. It is over its time or its memory and is killed. The run
is cancelled and it is killed. However it ends, its process group is killed afterwards, and so is whatever has left the
group, as far as it is known: a cell that leaves processes behind disturbs the measurements of the next. Known are those
that carry its token, and those that were its descendants whenever memory was looked at. A cell's process keeps the
orphans among its descendants (see ``harness.worker.orphans``), and ends them before it ends by itself. When it dies
one process may be missed: one that was started in the moments before, has left the group and has a clean environment.
Where the cell was forked by a warm worker, that worker ends it.

The child's end is noticed without reaping it, see ``child``. Where the child comes from is not known here.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

import psutil

from harness.execution import deadman, memory
from harness.execution.child import Child, ParentLostError
from harness.execution.files import writing

TICK = 0.02
"""Seconds between looks at the child's end and at the cancellation event."""

Ending = Literal["exited", "signalled", "timeout", "oom", "cancelled", "not-started", "lost"]
"""How a child ended.

``lost``: it is not known how, because the process that it was forked from is gone. The child is gone too.
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child may use.

    Attributes:
        seconds: wall clock, from start to end.
        memory_mb: what the whole process tree uses in MiB, see ``memory``; None: as much as there is.
        grace: seconds between SIGTERM and SIGKILL when the time is over.
        interval: seconds between samples of memory.
    """

    seconds: float
    memory_mb: float | None = None
    grace: float = 2.0
    interval: float = 0.25


@dataclass(frozen=True, kw_only=True)
class SupervisedExit:
    """How a child ended.

    Attributes:
        ending: the way it went; ``oom`` also when the kernel killed it for memory.
        code: its exit status when it exited by itself.
        signal: the signal that killed it, when we did not.
        seconds: wall clock.
        peak_rss_mb: the largest sample of the tree's resident memory in MiB; None when it ended before the first.
        kernel_oom: whether the kernel killed something for want of memory meanwhile, in this machine or control group.
        detail: what a person wants to know beside it: the limit that was passed, why it could not be started.
    """

    ending: Ending
    code: int | None = None
    signal: int | None = None
    seconds: float = 0.0
    peak_rss_mb: float | None = None
    detail: str | None = None
    kernel_oom: bool = False


def run_supervised(
    start: Callable[[BinaryIO], Child],
    *,
    headline: str,
    log: Path,
    limits: Limits,
    token: str,
    cancelled: threading.Event,
    poll: Callable[[], None] | None = None,
) -> SupervisedExit:
    """Start a child and wait for its end, or end it. Blocks; may be called from any thread.

    Args:
        start: starts the child, whose output goes to the open log. Its OSError means that it cannot be started.
        headline: the log's first line: the command, shell-quoted.
        log: where its standard output and error go; replaced if it exists.
        limits: time and memory.
        token: the label that its processes carry in ``HARNESS_CELL_TOKEN``, unique to this child.
        cancelled: when set, the child is killed.
        poll: called at every sample of memory, in this thread.

    Raises:
        EnvironmentFailedError: the log cannot be written.
    """
    oom_kills = memory.kernel_oom_kills()
    started = time.monotonic()
    seen: set[psutil.Process] = set()
    try:
        with writing("a cell's log", log.parent):
            log.write_bytes(f"$ {headline}\n".encode())
            output = log.open("ab")
        with output:
            try:
                child = start(output)
            except OSError as error:
                reason = f"{error.filename} cannot be started: {error.strerror}"
                return SupervisedExit(ending="not-started", detail=reason)
        try:
            ending, detail, peak = _watch(child, limits, started, cancelled, poll, seen)
        finally:
            # Also when `poll` raised: nothing of the child survives this function.
            seconds = time.monotonic() - started
            status = _clear(child, token, seen)
    except ParentLostError as error:
        memory.kill(seen)
        deadman.kill_carriers(token)
        return SupervisedExit(ending="lost", detail=str(error), seconds=time.monotonic() - started)
    after = memory.kernel_oom_kills()
    kernel_oom = oom_kills is not None and after is not None and after > oom_kills
    how = SupervisedExit(ending="exited", detail=detail, seconds=seconds, peak_rss_mb=peak, kernel_oom=False)
    if ending is not None:
        return replace(how, ending=ending)
    if status >= 0:
        return replace(how, code=status, kernel_oom=kernel_oom)
    if -status == signal.SIGKILL and kernel_oom:
        detail = "the kernel killed it because the machine or its control group was out of memory"
        return replace(how, ending="oom", signal=-status, detail=detail)
    return replace(how, ending="signalled", signal=-status)


def _watch(
    child: Child,
    limits: Limits,
    started: float,
    cancelled: threading.Event,
    poll: Callable[[], None] | None,
    seen: set[psutil.Process],
) -> tuple[Ending | None, str | None, float | None]:
    """Wait until the child has ended (not reaped) or had to be ended.

    Return why it was ended, in words, and peak memory in MiB. ``seen`` grows by every process of its tree.
    """
    peak: float | None = None
    next_sample = started
    while not child.has_ended():
        now = time.monotonic()
        if now - started > limits.seconds:
            _terminate(child, limits.grace)
            return "timeout", f"no end after {limits.seconds:g} s, its time limit", peak
        if now >= next_sample:
            next_sample = now + limits.interval
            processes = memory.tree(child.pid)
            seen.update(processes)
            resident = memory.resident_mb(processes)
            peak = resident if peak is None else max(peak, resident)
            if limits.memory_mb is not None and resident > limits.memory_mb:
                used = memory.footprint_mb(processes)
                if used > limits.memory_mb:
                    detail = f"used {used:.0f} MiB, more than its memory limit of {limits.memory_mb:.0f} MiB"
                    return "oom", detail, peak
            if poll is not None:
                poll()
        if cancelled.wait(TICK) and not child.has_ended():
            return "cancelled", "the run was interrupted", peak
    return None, None, peak


def _terminate(child: Child, grace: float) -> None:
    """Ask the child's process group to end and give it ``grace`` seconds; what is left is killed by the caller."""
    child.signal_group(signal.SIGTERM)
    deadline = time.monotonic() + grace
    while not child.has_ended() and time.monotonic() < deadline:
        time.sleep(TICK)


def _clear(child: Child, token: str, seen: set[psutil.Process]) -> int:
    """Kill what is left of the child and reap it; return its exit code."""
    seen.update(memory.tree(child.pid))
    child.signal_group(signal.SIGKILL)  # not reaped yet, so the group is still this child's
    memory.kill(seen)
    status = child.reap()
    deadman.kill_carriers(token)
    return status
