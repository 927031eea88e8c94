"""What can happen to a stage, and so to a cell, worst first; and what that means in the light of what was declared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

Outcome = Literal[
    "crash", "oom", "timeout", "error", "noop", "fail", "blind", "environment", "unresolvable", "unsupported",
    "skipped", "pass",
]  # fmt: skip
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""Worst first: a cell's outcome is the worst of its stages'."""

MEANINGS: Mapping[Outcome, str] = {
    "crash": "a process was killed by a signal",
    "oom": "it used more memory than allowed, or the kernel killed it for memory",
    "timeout": "it did not end within its time limit",
    "error": "an exception, in the library's own words",
    "noop": "nothing was attempted, or every tensor with a delta was dropped: the merged checkpoint is the base",
    "fail": "a check rejected it",
    "blind": "too little signal, or a control got through: this cell could not have noticed a fault, so it says "
    "nothing",
    "environment": "the machine could not give what it needs: no interpreter, no index in reach, no room on the disk",
    "unresolvable": "existing versions contradict each other, in uv's words",
    "unsupported": "the stack has no such family or feature, said by the library",
    "skipped": "it needs something that this machine has not",
    "pass": "everything ran, everything was right, and the controls were rejected",
}

HARMLESS: tuple[Outcome, ...] = ("unsupported", "skipped", "pass")
"""Outcomes that are no failure. All but a pass must be declared all the same: a family may not get lost unnoticed."""

Status = Literal[
    "ok", "known-failure", "flaky", "unexpected-pass", "new", "regression", "unresolvable", "unsupported",
    "environment", "planted",
]  # fmt: skip
"""What an outcome means in the light of what was declared, and of whether the cell ever passed.

See ``harness.matrix.verdict``.
"""

ENDS_PROCESS: tuple[Outcome, ...] = ("crash", "oom", "timeout")
"""Outcomes with which a stage's process has ended. Later stages that share it could not be run then."""

INFRASTRUCTURE: tuple[Outcome, ...] = ("environment", "skipped")
"""Outcomes that are the machine's fault. They say nothing of whether releases go together."""

AS_EXPECTED: tuple[Status, ...] = ("ok", "known-failure", "flaky")
"""Statuses for which nobody has to look; any other, and a cell that was not run, makes a command exit with 1."""

Ended = Literal["completed", "raised", "unsupported", "died"]
"""How a stage ended, which is all that a worker says of it.

``raised``: an exception. ``unsupported``: the library said that it has no such family or feature. ``died``: its process
ended before it did. The host decides what that amounts to (``harness.execution.decision``).
"""


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the outcome of a cell: the worst of its stages', and ``pass`` only when there is nothing else."""
    return min(outcomes, key=OUTCOMES.index, default="pass")
