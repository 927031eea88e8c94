"""What a cell left behind becomes its result. Pure: an observation, an end and an environment in, a ``CellResult`` out.

A worker writes what it has seen after each stage. So whatever happens to it afterwards, the finished stages are known.
Here the parts are put together: what the host knows, what the worker measured, how the worker ended (``interruption``).
What it all amounts to is decided in ``decision``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from packaging.version import Version
from pydantic import TypeAdapter, ValidationError

from harness.contract.outcomes import Outcome
from harness.contract.stages import STAGES, StageName
from harness.execution.decision import EndedStage, decide
from harness.execution.interruption import interruption_of
from harness.execution.observation import Observation
from harness.execution.redact import Redactor
from harness.execution.supervise import SupervisedExit
from harness.matrix.cell import Cell
from harness.result import CellResult, StageResult

_COMPARED_VERSIONS = ("transformers", "peft", "trl", "torch")
_REASON_LIMIT = 2000
_STAGES = TypeAdapter(dict[StageName, EndedStage])


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
    result = _host_part(cell, stack, log=log, started=started)
    stages: dict[StageName, EndedStage] = {}
    problem = observation.problem
    try:
        result, stages = _with_observation(result, redactor.mapping(observation.fields))
    except (ValidationError, TypeError) as error:
        problem = problem or f"the worker's observation does not fit the result's schema: {_first_problem(error)}"
    if result.peak_rss_mb is None and ended.peak_rss_mb is not None:
        result.peak_rss_mb = round(ended.peak_rss_mb, 1)
    result.timings.setdefault("cell", round(ended.seconds, 3))
    _compare_versions(result, stack)
    interruption = interruption_of(observation, ended, stages, problem=problem, log_tail=log_tail)
    return _shortened(decide(result, stages, interruption=interruption, out_of_memory=ended.kernel_oom), redactor)


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
    result.stages[stage] = StageResult(result=outcome, reason=reason)
    return _shortened(decide(result, {}), redactor)


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


def _with_observation(
    result: CellResult, fields: Mapping[str, object]
) -> tuple[CellResult, dict[StageName, EndedStage]]:
    """Return the result with what the worker measured, and how its stages ended.

    Raises:
        ValidationError, TypeError: a field is not what it should be.
    """
    stages = _STAGES.validate_python(fields.get("stages", {}), strict=False)
    measured = {name: value for name, value in fields.items() if name != "stages"}
    known = result.model_dump(mode="json")
    # Validated as a whole, so that a worker's field of a wrong type is found here and not by a reader of the file.
    merged = {**known, **measured}
    merged["versions"] = {**known["versions"], **merged["versions"]}
    return CellResult.model_validate(merged), stages


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


def _public(version: str) -> Version | str:
    """The version without its local part (``+cpu``); ``5.5`` and ``5.5.0`` are equal.

    What a library calls its version may be none, or one with more digits than a number can have.
    """
    try:
        return Version(Version(version).public)
    except ValueError:
        return version


def _shortened(result: CellResult, redactor: Redactor) -> CellResult:
    """Return the result with reasons that a table can hold and that say nothing of the machine."""
    for stage in result.stages.values():
        stage.reason = None if stage.reason is None else _shorten(redactor.text(stage.reason))
    return result.model_copy(update={"reason": result.stages[result.stage].reason if result.stage else None})


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
