"""What a cell left behind becomes its result. Pure: an observation, an end and an environment in, a ``CellResult`` out.

A worker writes what it has seen after each stage, so whatever happens to it afterwards, the finished stages are known. The
rest follows from how it ended: the stage that was running gets the timeout, the crash or the lack of memory; stages that
never started are ``not_run``, with the failed stage they would have needed.

A worker is believed in what it measured, not in what it concludes: a stage reported as passed with a failed check of its
own is a failure, and a pass without the evidence that makes one (every stage run, tensors attempted, none dropped or
wrong) is an error. Green must mean that something was shown.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from packaging.version import InvalidVersion, Version
from pydantic import ValidationError

from harness.execution.observation import Observation
from harness.execution.redact import Redactor
from harness.execution.supervise import SupervisedExit
from harness.matrix.cell import Cell
from harness.result import (
    NEEDS,
    OUTCOMES,
    STAGES,
    CellResult,
    Check,
    Outcome,
    StageName,
    StageResult,
    missing_evidence,
    worst,
)

_HOST_STAGES: tuple[StageName, ...] = ("resolve", "install")
_COMPARED_VERSIONS = ("transformers", "peft", "trl", "torch")
_REASON_LIMIT = 2000

LOG_ENDS = "The log ends:"
"""Stands before the end of a log where a reason quotes it."""


@dataclass(frozen=True, kw_only=True)
class StackRecord:
    """What is known of the environment a cell ran in. ``lock_sha256`` is None for an interpreter that is not ours."""

    versions: Mapping[str, str] = field(default_factory=dict)
    lock_sha256: str | None = None
    python_version: str | None = None
    seconds_resolve: float | None = None
    seconds_install: float | None = None


def finalise(
    cell: Cell,
    *,
    observation: Observation,
    ended: SupervisedExit,
    stack: StackRecord,
    redactor: Redactor,
    log_tail: str,
    log: str | None,
    started: str | None,
) -> CellResult:
    """Return the result of a cell whose worker has ended.

    Args:
        cell: the cell.
        observation: what its worker wrote.
        ended: how its worker ended.
        stack: the environment it ran in.
        redactor: takes the machine out of every text that is kept.
        log_tail: the last lines of its log, quoted where there is no better reason.
        log: path of the log relative to the output directory.
        started: when it started (ISO 8601, UTC).
    """
    fields = redactor.mapping(observation.fields)
    result = _host_part(cell, stack, log=log, started=started)
    problem = observation.problem
    try:
        # Validated as a whole, so that a worker's field of a wrong type is found here and not by a reader of the file.
        merged = {**result.model_dump(mode="json"), **fields}
        merged["stages"] = {**merged["stages"], **result.model_dump(mode="json")["stages"]}
        merged["versions"] = {**stack.versions, **merged["versions"]}
        result = CellResult.model_validate(merged)
    except (ValidationError, TypeError) as error:
        problem = problem or f"the worker's observation does not fit the result's schema: {_first_problem(error)}"
    if result.peak_rss_mb is None and ended.peak_rss_mb is not None:
        result.peak_rss_mb = round(ended.peak_rss_mb, 1)
    result.timings.setdefault("cell", round(ended.seconds, 3))

    _believe_checks(result)
    _compare_versions(result, stack)
    if ended.kernel_oom:
        _name_memory(result)
    _place_end(result, observation, _verdict(observation, ended, problem, log_tail), problem, redactor)
    _fill_not_run(result)
    _demand_evidence(result)
    return _conclude(result)


def without_worker(
    cell: Cell, *, outcome: Outcome, stage: StageName, reason: str, stack: StackRecord, redactor: Redactor, started: str
) -> CellResult:
    """Return the result of a cell whose environment could not be made.

    Args:
        cell: the cell.
        outcome: ``unresolvable`` or ``error``.
        stage: ``resolve`` or ``install``.
        reason: uv's own explanation or what went wrong.
        stack: what is known of the environment all the same.
        redactor: takes the machine out of the reason.
        started: when making the environment ended (ISO 8601, UTC).
    """
    result = _host_part(cell, stack, log=None, started=started)
    result.stages = {name: value for name, value in result.stages.items() if STAGES.index(name) < STAGES.index(stage)}
    result.stages[stage] = StageResult(result=outcome, reason=_shorten(redactor.text(reason)))
    _fill_not_run(result)
    return _conclude(result)


def _host_part(cell: Cell, stack: StackRecord, *, log: str | None, started: str | None) -> CellResult:
    """What the host knows without the worker."""
    reason = "not needed: an interpreter that the user gave" if cell.unmanaged else None
    return CellResult(
        cell=cell,
        cell_id=cell.id,
        outcome="error",
        versions=dict(stack.versions),
        lock_sha256=stack.lock_sha256,
        python=stack.python_version,
        seed=cell.seed,
        stages={
            "resolve": StageResult(result="pass", seconds=stack.seconds_resolve, reason=reason),
            "install": StageResult(result="pass", seconds=stack.seconds_install, reason=reason),
        },
        log=log,
        started=started,
    )


def _believe_checks(result: CellResult) -> None:
    """A stage with a failed check has not passed, whatever is said of it."""
    for check in result.checks:
        stage = result.stages.get(check.stage)
        if not check.passed and (stage is None or stage.result == "pass"):
            outcome: Outcome = "blind" if check.name == "signal" or check.name.startswith("control:") else "fail"
            seconds = stage.seconds if stage else None
            result.stages[check.stage] = StageResult(result=outcome, seconds=seconds, reason=describe_check(check))


def describe_check(check: Check) -> str:
    """Return a check in a line: ``kl is 0.31, the band is <= 1e-09``."""
    text = f"{check.name} is {check.value}, the band is {check.band}"
    return f"{text}: {check.detail}" if check.detail else text


def _compare_versions(result: CellResult, stack: StackRecord) -> None:
    """What a cell imported must be what its environment was locked to; anything else came from somewhere else."""
    for package in _COMPARED_VERSIONS:
        seen = result.versions.get(package)
        sources = (
            (result.cell.stack.version_of(package), "the cell is named after"),
            (stack.versions.get(package), "the environment holds"),
        )
        for wanted, words in sources:
            if wanted is not None and seen is not None and _public(wanted) != _public(seen):
                reason = f"imported {package} {seen}, but {words} {wanted}"
                result.stages["import"] = StageResult(result="error", reason=reason)


def _name_memory(result: CellResult) -> None:
    """A stage's own process that was killed while the kernel ran out of memory is ``oom``, whatever else it looks like."""
    for name, stage in result.stages.items():
        if stage.result == "crash" and "SIGKILL" in (stage.reason or ""):
            result.stages[name] = stage.model_copy(update={"result": "oom"})


def _public(version: str) -> Version | str:
    """The version without its local part (``+cpu``), as far as it is one; ``5.5`` and ``5.5.0`` are equal."""
    try:
        return Version(Version(version).public)
    except InvalidVersion:
        return version


def _place_end(
    result: CellResult,
    observation: Observation,
    verdict: tuple[Outcome, str] | None,
    problem: str | None,
    redactor: Redactor,
) -> None:
    """Give the end of the worker to the stage that it belongs to."""
    if verdict is None:
        return
    outcome, reason = verdict
    if observation.done and problem is None:
        # All stages have their results; the worker came to grief on its way out.
        stage: StageName = max(result.stages, key=STAGES.index)
        reason = f"after the last stage had finished: {reason}"
    else:
        missing = (name for name in STAGES if name not in _HOST_STAGES and name not in result.stages)
        stage = next(missing, STAGES[-1]) if observation.running is None else observation.running
    known = result.stages.get(stage)
    if known is None or known.result == "not_run" or OUTCOMES.index(outcome) <= OUTCOMES.index(known.result):
        seconds = known.seconds if known else None
        result.stages[stage] = StageResult(result=outcome, seconds=seconds, reason=_shorten(redactor.text(reason)))


def _verdict(
    observation: Observation, ended: SupervisedExit, problem: str | None, log_tail: str
) -> tuple[Outcome, str] | None:
    """Return what the worker's end amounts to, None when it ended as it should."""
    verdict: tuple[Outcome, str] | None = None
    if ended.ending == "timeout" or ended.ending == "oom":  # noqa: PLR1714  # so that mypy sees an Outcome
        verdict = ended.ending, ended.detail or ended.ending
    elif ended.ending == "signalled":
        verdict = "crash", f"killed by {_signal_name(ended.signal)}"
    elif ended.ending != "exited":
        verdict = "error", ended.detail or ended.ending
    elif problem is not None:
        verdict = "error", f"{problem} (exit status {ended.code})"
    elif not observation.done:
        verdict = "error", f"the worker ended with exit status {ended.code} before it was done"
    elif ended.code != 0:
        verdict = "error", f"the worker's exit status is {ended.code}"
    if verdict is None or not log_tail or ended.ending not in {"exited", "signalled"}:
        return verdict
    outcome, reason = verdict
    if ended.ending == "exited":
        reason = f"{reason}: {log_tail.splitlines()[-1].strip()}"  # of a traceback, the exception
    return outcome, f"{reason}\n{LOG_ENDS}\n{log_tail}"


def _signal_name(number: int | None) -> str:
    """``SIGSEGV``, or the number of a real-time signal."""
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return f"signal {number}"


def _fill_not_run(result: CellResult) -> None:
    """Give every stage that is missing its ``not_run``, with what it needed and did not get, and put all in order."""
    for name in STAGES:
        stage = result.stages.get(name)
        if stage is not None and (stage.result != "not_run" or stage.reason):
            continue
        cause = _cause(result, name)
        reason = None if cause is None else f"needs {cause}, which ended in {result.stages[cause].result}"
        result.stages[name] = StageResult(result="not_run", reason=reason)
    result.stages = {name: result.stages[name] for name in STAGES}


def _cause(result: CellResult, name: StageName) -> StageName | None:
    """The nearest stage that ``name`` depends on and that has a result other than pass and not_run."""
    for needed in NEEDS[name]:
        stage = result.stages.get(needed)
        if stage is not None and stage.result not in {"pass", "not_run"}:
            return needed
        cause = _cause(result, needed)
        if cause is not None:
            return cause
    return None


def _demand_evidence(result: CellResult) -> None:
    """A cell without a failed stage must show all that a pass stands for; otherwise it has proved nothing."""
    if any(stage.result not in {"pass", "not_run"} for stage in result.stages.values()):
        return
    lacking = missing_evidence(result)
    if lacking is None:
        return
    last: StageName = "compare"
    stage = next((name for name in STAGES if result.stages[name].result == "not_run"), last)
    reason = f"the worker reports no failure, but {lacking}"
    result.stages[stage] = StageResult(result="error", seconds=result.stages[stage].seconds, reason=reason)


def _conclude(result: CellResult) -> CellResult:
    """Set outcome, stage and reason from the stages: the worst, and of equals the first."""
    results = {name: stage.result for name, stage in result.stages.items()}
    result.outcome = worst(value for value in results.values() if value != "not_run")
    if result.outcome != "pass":
        stage = next(name for name, value in results.items() if value == result.outcome)
        result.stage = stage
        result.reason = result.stages[stage].reason
    return result


def _first_problem(error: ValidationError | TypeError) -> str:
    """The first thing that is wrong, with its place."""
    if isinstance(error, TypeError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _shorten(text: str) -> str:
    """A reason is read in a table: of a long one the beginning and the end."""
    half = _REASON_LIMIT // 2
    return text if len(text) <= _REASON_LIMIT else f"{text[:half]}\n…\n{text[-half:]}"
