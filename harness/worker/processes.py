"""Stages in processes of their own, forked from a parent that has imported the libraries and done nothing else.

A fork after the imports is as fresh as a new process: no model, no adapter, no patched class. It saves the five to
fifteen seconds that importing costs. The parent must not run a single tensor operation: once torch's thread pool
exists, a forked child hangs in its first parallel matmul.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from harness.contract.stages import StageName
from harness.worker.newborn import leave, reseed
from harness.worker.observation import Observation, StageStoppedError, TornRecordError
from harness.worker.orphans import children, end_children, reap_children

STOPPED = 1
"""Exit code of a child in which a stage ended without a usable result. The record says which and why."""


def run_in_child(
    observation: Observation, stages: Callable[[Observation], None], *, names: Sequence[StageName]
) -> None:
    """Run ``stages`` in a forked child that shares the observation file.

    How it ended is recorded here where it did not record that itself. What it leaves running is ended.

    Args:
        observation: the cell's record; afterwards it holds what the child has seen.
        stages: what to run.
        names: the stages that it runs, in order.
    """
    observation.save()
    sys.stdout.flush()
    sys.stderr.flush()
    others = set(children())
    pid = os.fork()
    if pid == 0:
        _child(observation, stages)
    _, status = os.waitpid(pid, 0)
    # What it has left running has come here. The next stages are not to find it at work on what they judge.
    end_children(others)
    reap_children(others)
    record_end(observation, os.waitstatus_to_exitcode(status), names=names)


def record_end(
    observation: Observation, code: int, *, names: Sequence[StageName], expected: Collection[int] = (0, STOPPED)
) -> None:
    """Take over what a process has seen of its stages, and record its own end where that is news.

    Args:
        observation: the cell's record, read again from its file; where that holds none, what was known before stays.
        code: the process's exit code; negative: the signal that killed it.
        names: the stages that it was to run, in order.
        expected: exit codes of a process that has recorded everything itself.
    """
    torn = None
    try:
        observation.data = Observation.load(observation.path).data
    except TornRecordError as error:
        torn = str(error)
    running = observation.data["running"]
    # A process that dies between two stages has finished the first: its end belongs to the one that it never began.
    stage = running or next((name for name in names if name not in observation.data["stages"]), names[-1])
    if code < 0:
        reason = f"killed by signal {-code}"
        if -code == signal.SIGKILL:
            reason += " (SIGKILL: most often the kernel, when memory runs out)"
        observation.close(stage, "died", reason=reason, signal=-code)
    elif torn is not None:
        observation.close(stage, "died", reason=torn)
    elif running is not None or code not in expected:
        reason = f"the stage's process ended with exit code {code} before the stage did; the log has the rest"
        observation.close(stage, "died", reason=reason)


def _child(observation: Observation, stages: Callable[[Observation], None]) -> NoReturn:
    """Run the stages and leave without the interpreter's shutdown, which belongs to the parent."""
    code = STOPPED
    try:
        reseed()
        renew_thread_pool()
        stages(observation)
        code = 0
    except StageStoppedError:
        pass
    except BaseException:  # noqa: BLE001 — reported below; a child must never return into its parent's code
        traceback.print_exc()
        code = 70
    finally:
        leave(code)


def renew_thread_pool() -> None:
    """Make torch's thread pool anew, while this is the process's only thread.

    torch marks its pool as broken in a forked child, and the first that asks for it makes another. Two threads that ask
    at the same moment collide: ``Invalid thread pool!`` (torch 2.13, ``caffe2/utils/threadpool/pthreadpool-cpp.cc``).
    transformers 5.23 loads weights in several threads.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(torch.get_num_threads())


def peak_rss_mb() -> float:
    """Return the largest resident set of this process and its waited-for children so far: MiB."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round(max(own, children) / 1024, 1)
