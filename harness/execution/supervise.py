"""One child process, from its start to the certainty that nothing of it is left.

The child leads a session of its own, so that Ctrl-C on the terminal reaches the harness alone and the harness decides.
It ends in one of these ways: it exits; a signal kills it; it is over its time or its memory and is killed; the run is
cancelled and it is killed. However it ends, its process group is killed afterwards, and so is whatever has left the group:
a cell that leaves processes behind disturbs the measurements of the next.

The child's end is noticed without reaping it (``waitid`` with ``WNOWAIT``): as long as it is a zombie, its id and that of
its group cannot be given to anybody else, so the signals that follow cannot hit a stranger.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.execution import deadman, memory

TICK = 0.05
"""Seconds between looks at the child's end and at the cancellation event."""

Ending = Literal["exited", "signalled", "timeout", "oom", "cancelled", "not-started"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child may use.

    Attributes:
        seconds: wall clock, from start to end.
        memory_mb: proportional set size of the whole process tree in MiB; None: as much as there is.
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
        stragglers: processes of it that were still there when it had ended and had to be killed.
        kernel_oom: whether the kernel killed something for want of memory meanwhile, in this machine or control group.
        detail: what a person wants to know beside it: the limit that was passed, why it could not be started.
    """

    ending: Ending
    code: int | None = None
    signal: int | None = None
    seconds: float = 0.0
    peak_rss_mb: float | None = None
    stragglers: int = 0
    detail: str | None = None
    kernel_oom: bool = False


def run_supervised(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    log: Path,
    limits: Limits,
    token: str,
    cancelled: threading.Event,
    poll: Callable[[], None] | None = None,
) -> SupervisedExit:
    """Run ``command`` and wait for its end, or end it. Blocks; may be called from any thread.

    Args:
        command: the program and its arguments. It is written to the log, shell-quoted, before it starts.
        cwd: its current directory.
        environment: its whole environment; ``HARNESS_CELL_TOKEN`` is added.
        log: where its standard output and error go; replaced if it exists.
        limits: time and memory.
        token: the label by which its processes are found, unique to this child.
        cancelled: when set, the child is killed.
        poll: called at every sample of memory, in this thread.
    """
    oom_kills = memory.kernel_oom_kills()
    started = time.monotonic()
    with log.open("wb") as output:
        output.write(f"$ {shlex.join(command)}\n".encode())
        output.flush()
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**environment, deadman.TOKEN: token},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return SupervisedExit(ending="not-started", detail=f"{command[0]} cannot be started: {error.strerror}")
    try:
        ending, detail, peak = _watch(process, limits, started, cancelled, poll)
    finally:
        # Also when `poll` raised: nothing of the child survives this function.
        seconds = time.monotonic() - started
        stragglers = _clear(process, token)
    if ending is not None:
        return SupervisedExit(ending=ending, detail=detail, seconds=seconds, peak_rss_mb=peak, stragglers=stragglers)
    status = process.returncode
    after = memory.kernel_oom_kills()
    kernel_oom = oom_kills is not None and after is not None and after > oom_kills
    if status >= 0:
        return SupervisedExit(
            ending="exited",
            code=status,
            seconds=seconds,
            peak_rss_mb=peak,
            stragglers=stragglers,
            kernel_oom=kernel_oom,
        )
    if -status == signal.SIGKILL and kernel_oom:
        detail = "the kernel killed it because the machine or its control group was out of memory"
        return SupervisedExit(
            ending="oom", signal=-status, detail=detail, seconds=seconds, peak_rss_mb=peak, stragglers=stragglers
        )
    return SupervisedExit(ending="signalled", signal=-status, seconds=seconds, peak_rss_mb=peak, stragglers=stragglers)


def _watch(
    process: subprocess.Popen[bytes],
    limits: Limits,
    started: float,
    cancelled: threading.Event,
    poll: Callable[[], None] | None,
) -> tuple[Ending | None, str | None, float | None]:
    """Wait until the child has ended (not reaped) or had to be ended: why it was ended, in words, and peak memory in MiB."""
    peak: float | None = None
    next_sample = started
    while not _has_ended(process):
        now = time.monotonic()
        if now - started > limits.seconds:
            _terminate(process, limits.grace)
            return "timeout", f"no end after {limits.seconds:g} s, its time limit", peak
        if now >= next_sample:
            next_sample = now + limits.interval
            processes = memory.tree(process.pid)
            resident = memory.resident_mb(processes)
            peak = resident if peak is None else max(peak, resident)
            if limits.memory_mb is not None and resident > limits.memory_mb:
                proportional = memory.proportional_mb(processes)
                if proportional > limits.memory_mb:
                    detail = f"used {proportional:.0f} MiB, more than its memory limit of {limits.memory_mb:.0f} MiB"
                    return "oom", detail, peak
            if poll is not None:
                poll()
        if cancelled.wait(TICK) and not _has_ended(process):
            return "cancelled", "the run was interrupted", peak
    return None, None, peak


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the child has ended; it is left as a zombie, see the module's docstring."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _terminate(process: subprocess.Popen[bytes], grace: float) -> None:
    """Ask the child's process group to end and give it ``grace`` seconds; what is left is killed by the caller."""
    os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while not _has_ended(process) and time.monotonic() < deadline:
        time.sleep(TICK)


def _clear(process: subprocess.Popen[bytes], token: str) -> int:
    """Kill what is left of the child, reap it, and return how many processes it left behind."""
    left = [pid for pid in deadman.carriers(token) if pid != process.pid] if _has_ended(process) else []
    os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the group is still this child's
    process.wait()
    deadman.kill_carriers(token)
    return len(left)
