"""How a worker's process ended becomes what interrupted its cell: which stage that belongs to.

The words for it are found here too.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping

from harness.contract.outcomes import Outcome
from harness.contract.stages import STAGES, WORKER_STAGES, StageName
from harness.execution.decision import EndedStage, Interruption
from harness.execution.observation import Observation
from harness.execution.supervise import SupervisedExit

LOG_ENDS = "The log ends:"
"""Stands before the end of a log where a reason quotes it."""


def interruption_of(
    observation: Observation,
    ended: SupervisedExit,
    stages: Mapping[StageName, EndedStage],
    *,
    problem: str | None,
    log_tail: str,
) -> Interruption | None:
    """Return what interrupted a cell, None when its worker ended as it should.

    Args:
        observation: what the worker wrote.
        ended: how its process ended.
        stages: the stages that it had ended.
        problem: why its observation cannot be believed, or None.
        log_tail: the last lines of its log, quoted where there is no better reason.
    """
    found = _outcome(observation, ended, problem, log_tail)
    if found is None:
        return None
    outcome, reason = found
    if observation.done and problem is None and stages:
        # All stages have their results; the worker came to grief on its way out.
        last: StageName = max(stages, key=STAGES.index)
        return Interruption(stage=last, outcome=outcome, reason=f"after the last stage had finished: {reason}")
    next_one = next((name for name in WORKER_STAGES if name not in stages), WORKER_STAGES[-1])
    return Interruption(stage=observation.running or next_one, outcome=outcome, reason=reason)


def _outcome(
    observation: Observation, ended: SupervisedExit, problem: str | None, log_tail: str
) -> tuple[Outcome, str] | None:
    """Return what the end of the process amounts to, in words."""
    outcome: Outcome = "error"
    if ended.ending == "timeout" or ended.ending == "oom":  # noqa: PLR1714  # so that mypy sees an Outcome
        return ended.ending, ended.detail or ended.ending
    if ended.ending == "signalled":
        outcome, reason = "crash", f"killed by {_signal_name(ended.signal)}"
    elif ended.ending != "exited":
        return "error", ended.detail or ended.ending
    elif problem is not None:
        reason = f"{problem} (exit status {ended.code})"
    elif not observation.done:
        reason = f"the worker ended with exit status {ended.code} before it was done"
    elif ended.code != 0:
        reason = f"the worker's exit status is {ended.code}"
    else:
        return None
    if not log_tail:
        return outcome, reason
    if ended.ending == "exited":
        reason = f"{reason}: {log_tail.splitlines()[-1].strip()}"  # of a traceback, the exception
    return outcome, f"{reason}\n{LOG_ENDS}\n{log_tail}"


def _signal_name(number: int | None) -> str:
    """``SIGSEGV``, or the number of a real-time signal."""
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return f"signal {number}"
