"""Stages in processes of their own, forked from a parent that has imported the libraries and done nothing else.

A fork after the imports is as fresh as a new process (no model, no adapter, no patched class) and saves the five to fifteen
seconds that importing costs. The parent must not run a single tensor operation: once torch's thread pool exists, a forked
child hangs in its first parallel matmul.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable

from harness.contract.stages import WORKER_STAGES
from harness.worker.observation import Observation, StageStoppedError

STOPPED = 1
"""Exit code of a child in which a stage ended without a usable result; the record says which and why."""


def run_in_child(observation: Observation, stages: Callable[[Observation], None]) -> bool:
    """Run ``stages`` in a forked child that shares the observation file.

    Returns:
        True when every stage of the child ended with a usable result. False when one stopped, or when the child died: then
        the stage that was running is recorded as a crash, with the signal.
    """
    observation.save()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(observation, stages)
    _, status = os.waitpid(pid, 0)
    observation.data = Observation.load(observation.path).data
    # A child that dies between two stages has finished the first: its end belongs to the one that it never began.
    next_stage = next((name for name in WORKER_STAGES if name not in observation.data["stages"]), WORKER_STAGES[-1])
    running = observation.data["running"]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        reason = f"killed by signal {number}"
        if number == signal.SIGKILL:
            reason += " (SIGKILL: most often the kernel, when memory runs out)"
        observation.close(running or next_stage, "died", reason=reason, signal=number)
        return False
    code = os.waitstatus_to_exitcode(status)
    if running is not None or code not in {0, STOPPED}:
        reason = f"the stage's process ended with exit code {code} before the stage did; the log has the rest"
        observation.close(running or next_stage, "died", reason=reason)
        return False
    return code == 0


def _child(observation: Observation, stages: Callable[[Observation], None]) -> None:
    """Run the stages and leave without the interpreter's shutdown, which belongs to the parent."""
    code = STOPPED
    try:
        stages(observation)
        code = 0
    except StageStoppedError:
        pass
    except BaseException:  # noqa: BLE001 — reported below; a child must never return into its parent's code
        traceback.print_exc()
        code = 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def peak_rss_mb() -> float:
    """Return the largest resident set of this process and its waited-for children so far: MiB."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round(max(own, children) / 1024, 1)
