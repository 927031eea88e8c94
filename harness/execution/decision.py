"""What happened in a cell becomes its outcome: one pure function, the only place where an outcome is decided.

A worker says how each stage ended and what each check measured. It concludes nothing. A stage that came to its end is
what its checks say. One that raised, or whose process died, is what that was. A stage that is missing was not run, with
the failed stage that it would have needed. Each stage that completed must show what it stands for, whatever else
failed. Where nothing failed, all that a pass stands for must be there: green must mean that something was shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.contract import checks as contract
from harness.contract.outcomes import ENDS_PROCESS, OUTCOMES, Ended, Outcome, worst
from harness.contract.readings import failed_in_words
from harness.contract.stages import STAGES, TABLE, WORKER_STAGES, StageName
from harness.evidence import missing_evidence, missing_of_stage
from harness.result import CellResult, Check, MergeCounts, StageResult

SIGKILL = 9


@dataclass(frozen=True, kw_only=True)
class EndedStage:
    """How a stage ended, as the worker saw it.

    Attributes:
        ended: the way.
        seconds: how long it took, None when nobody knows.
        reason: the library's words, where there are any.
        signal: the signal that its process died by.
    """

    ended: Ended
    seconds: float | None = None
    reason: str | None = None
    signal: int | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself: only a process that died did so by a signal.

        Raises:
            ValueError: there is a signal, and another end.
        """
        if self.signal is not None and self.ended != "died":
            raise ValueError(f"it {self.ended}, and died by signal {self.signal}")


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """What ended the worker before it was done, or on its way out, and the stage that it belongs to."""

    stage: StageName
    outcome: Outcome
    reason: str


def decide(
    result: CellResult,
    ended: Mapping[StageName, EndedStage],
    *,
    interruption: Interruption | None = None,
    out_of_memory: bool = False,
) -> CellResult:
    """Return ``result`` with every stage, its outcome, and the stage and reason that decided it.

    Args:
        result: all that was measured; its ``stages`` are those that the host itself ran, or found fault with.
        ended: the worker's stages.
        interruption: what ended the worker, None when it ended as it should.
        out_of_memory: whether the kernel ran out of memory meanwhile.
    """
    stages = {name: _of_worker(name, how, result, out_of_memory=out_of_memory) for name, how in ended.items()}
    for check in result.checks:
        if not check.passed and check.stage not in stages:
            stages[check.stage] = StageResult(result=_failing([check]), reason=describe_check(check))
    if "controls" not in stages and (through := _let_through(result)):
        stages["controls"] = StageResult(result="blind", reason=through)
    for name, how in ended.items():
        stages[name] = _without_ground(stages[name], name, how, ended)
    stages |= result.stages
    if interruption is not None:
        known = stages.get(interruption.stage)
        if known is None or _severity(interruption.outcome) <= _severity(known.result):
            seconds = known.seconds if known else None
            stages[interruption.stage] = StageResult(
                result=interruption.outcome, seconds=seconds, reason=interruption.reason
            )
    result = result.model_copy(update={"stages": with_not_run(stages)})
    return _concluded(_with_all_stages(_with_evidence(result, ended)))


def _of_worker(name: StageName, how: EndedStage, result: CellResult, *, out_of_memory: bool) -> StageResult:
    """Return what a stage that the worker ran amounts to."""
    outcome: Outcome
    reason = how.reason
    if how.ended == "completed":
        failed = [check for check in result.checks if check.stage == name and not check.passed]
        outcome = _judged(name, failed, result.merge) if failed else "pass"
        # An import that went through in another order than usual says so.
        reason = "; ".join(map(describe_check, failed)) or (how.reason if name == "import" else None)
        if name == "controls" and outcome == "pass" and (through := _let_through(result)):
            outcome, reason = "blind", through
    elif how.ended == "raised":
        outcome = "error"
    elif how.ended == "unsupported":
        outcome = "unsupported"
    elif how.signal is None:
        outcome = "error"
    else:
        outcome = "oom" if out_of_memory and how.signal == SIGKILL else "crash"
    return StageResult(result=outcome, seconds=how.seconds, reason=reason, raised=how.ended == "raised")


def _let_through(result: CellResult) -> str | None:
    """Say which controls were let through, whatever the checks say; None when there is none."""
    names = [control.name for control in result.controls if not control.rejected]
    return f"controls that were not rejected: {', '.join(names)}" if names else None


def _without_ground(
    stage: StageResult, name: StageName, how: EndedStage, ended: Mapping[StageName, EndedStage]
) -> StageResult:
    """Return a stage as it is, or as an error where it ended although something that it needs did not complete."""
    needs = [need for need in TABLE[name].needs if not TABLE[need].on_host]
    unmet = [need for need in needs if need not in ended or ended[need].ended != "completed"]
    if not unmet or _severity(stage.result) <= _severity("error"):
        return stage
    reason = f"it ended in {how.ended}, although {', '.join(unmet)}, which it needs, did not complete"
    return StageResult(result="error", seconds=how.seconds, reason=reason)


def _judged(name: StageName, failed: Sequence[Check], merge: MergeCounts | None) -> Outcome:
    """Return what failed checks make of a stage that came to its end."""
    if name == "compare" and merge is not None:
        with_delta = merge.attempted - merge.zero_delta - merge.below_rounding
        if merge.attempted == 0 or merge.dropped == with_delta > 0:
            return "noop"
    return _failing(failed)


def _failing(failed: Sequence[Check]) -> Outcome:
    """Return ``blind`` where nothing was seen to be wrong but too little was seen, else ``fail``."""
    outcomes = {check.name: contract.find(check.name, check.stage).failing for check in failed}
    if "signal" in outcomes:
        # Where no position lies clear of a router tie every distance is no number: nothing was seen to be wrong.
        seen = {check.name for check in failed if not _is_nan(check.value)}
        outcomes = {name: outcome for name, outcome in outcomes.items() if name in seen or name == "signal"}
    return worst(outcomes.values())


def _is_nan(value: float | str | None) -> bool:
    return str(value).strip().lower().lstrip("+-") == "nan"


def _severity(outcome: str) -> int:
    """Return the place of an outcome among all of them, worst first; a stage that was not run comes last."""
    return OUTCOMES.index(outcome) if outcome in OUTCOMES else len(OUTCOMES)


def describe_check(check: Check) -> str:
    """Return a failed check in a line: ``kl is 0.31, the band is <= 1e-09``."""
    return failed_in_words(check.name, check.value, check.band, check.detail)


def with_not_run(stages: Mapping[StageName, StageResult]) -> dict[StageName, StageResult]:
    """Return all stages in order; those that are missing were not run, for want of what they need."""
    complete: dict[StageName, StageResult] = {}
    for name in STAGES:
        stage = stages.get(name)
        if stage is None or (stage.result == "not_run" and not stage.reason):
            cause = _cause(stages, name)
            reason = None if cause is None else f"needs {cause}, which ended in {stages[cause].result}"
            before = [it for it in TABLE[name].after if it in stages and stages[it].result in ENDS_PROCESS]
            if cause is None and before:
                reason = f"its process ended in {before[-1]}, which ended in {stages[before[-1]].result}"
            stage = StageResult(result="not_run", reason=reason)
        complete[name] = stage
    return complete


def _cause(stages: Mapping[StageName, StageResult], name: StageName) -> StageName | None:
    """The nearest stage that ``name`` depends on and that has a result other than pass and not_run."""
    for needed in TABLE[name].needs:
        stage = stages.get(needed)
        if stage is not None and stage.result not in {"pass", "not_run"}:
            return needed
        cause = _cause(stages, needed)
        if cause is not None:
            return cause
    return None


def _with_evidence(result: CellResult, ended: Mapping[StageName, EndedStage]) -> CellResult:
    """A stage that completed must show all that it stands for, whatever else happened; otherwise it is an error."""
    for name in WORKER_STAGES:
        completed = name in ended and ended[name].ended == "completed"
        lacking = missing_of_stage(result, name) if completed else None
        if lacking is not None:
            stage = result.stages[name]
            said = f"; {stage.reason}" if stage.reason else ""
            error = StageResult(result="error", seconds=stage.seconds, reason=f"it completed, but {lacking}{said}")
            result = result.model_copy(update={"stages": {**result.stages, name: error}})
    return result


def _with_all_stages(result: CellResult) -> CellResult:
    """A cell without a failed stage must be a pass; otherwise it has proved nothing."""
    if any(stage.result not in {"pass", "not_run"} for stage in result.stages.values()):
        return result
    lacking = missing_evidence(result)
    if lacking is None:
        return result
    unplanted = result.model_copy(update={"cell": result.cell.model_copy(update={"fault": None})})
    if result.cell.fault is not None and missing_evidence(unplanted) is None:
        seconds = result.stages["controls"].seconds
        blind = StageResult(
            result="blind", seconds=seconds, reason=f"{result.cell.fault} was planted, and nothing saw it"
        )
        return result.model_copy(update={"stages": {**result.stages, "controls": blind}})
    last: StageName = "compare"
    name = next((name for name in STAGES if result.stages[name].result == "not_run"), last)
    reason = f"the worker reports no failure, but {lacking}"
    error = StageResult(result="error", seconds=result.stages[name].seconds, reason=reason)
    return result.model_copy(update={"stages": {**result.stages, name: error}})


def _concluded(result: CellResult) -> CellResult:
    """Return the result with its outcome: the worst of its stages', and of equals the first."""
    outcome = worst(_outcomes(result.stages.values()))
    if outcome == "pass":
        return result.model_copy(update={"outcome": outcome, "stage": None, "reason": None})
    name = next(name for name, stage in result.stages.items() if stage.result == outcome)
    return result.model_copy(update={"outcome": outcome, "stage": name, "reason": result.stages[name].reason})


def _outcomes(stages: Iterable[StageResult]) -> Iterable[Outcome]:
    for stage in stages:
        if stage.result != "not_run":
            yield stage.result
