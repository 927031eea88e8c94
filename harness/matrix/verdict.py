"""What a result means: its status.

An outcome says what happened. An expectation says what was declared. Both together make a status. Whatever was not
declared makes a run red, wherever in the cell it happened. What it is called goes by its cause: a cell that has passed
before is a regression, and no other is. The day a declared failure stops is an unexpected pass, as loud as a
regression: a declaration that is no longer true would hide the next fault. Nothing is inferred from silence. A stage
that a result does not mention was not run, and one that was not run needs a cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from harness.contract.outcomes import ENDS_PROCESS, HARMLESS, INFRASTRUCTURE, Status, worst
from harness.contract.readings import failed_in_words
from harness.contract.stages import STAGES, TABLE, StageName
from harness.evidence import missing_evidence, missing_of_stages
from harness.matrix.catalogue import RecipeFacts, read_catalogue
from harness.matrix.expectations import Expectation
from harness.planted import PlantedFault, planted_fault
from harness.result import CellResult, StageResult

EVERYWHERE = frozenset({"attention", "expert"})
"""Kinds that every family has. Another kind of its recipe a cell may lack."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a result means.

    Attributes:
        status: what it comes to, see ``harness.contract.outcomes.Status``.
        expectation: the declaration that decided, or None.
        sentence: why, for a reader.
    """

    status: Status
    expectation: Expectation | None = None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """What went wrong and was not declared.

    Attributes:
        sentence: in words.
        outcome: of the stage; None where no stage's outcome is what is wrong.
        declared: what was declared of that stage instead.
    """

    sentence: str
    outcome: str | None = None
    declared: Expectation | None = None

    def verdict(self, *, passed_before: bool) -> Verdict:
        """Return what it amounts to by its cause."""
        status = status_of(self.outcome, passed_before=passed_before)
        return Verdict(status=status, expectation=self.declared, sentence=self.sentence)


def status_of(outcome: str | None, *, passed_before: bool) -> Status:
    """Return the status of a cell that went wrong undeclared, by its cause.

    What is the machine's fault is that whatever the cell did before. A release that no longer resolves, or a family
    that got lost, is a regression where the cell has passed.

    Args:
        outcome: the outcome that was not declared; None where it is something else.
        passed_before: whether the cell is known to have passed.
    """
    if outcome in INFRASTRUCTURE:
        return "environment"
    if passed_before:
        return "regression"
    if outcome == "unresolvable":
        return "unresolvable"
    return "unsupported" if outcome == "unsupported" else "new"


def judge(
    result: CellResult,
    expectations: Sequence[Expectation],
    recipes: Mapping[str, RecipeFacts] | None = None,
    *,
    passed_before: bool = False,
) -> Verdict:
    """Say what a result means in the light of the expectations.

    Args:
        result: what happened.
        expectations: what was declared.
        recipes: what each recipe says of its cells, which a result's facts are held against; None: what the files say.
        passed_before: whether a baseline has the cell as passed. The result itself knows of earlier runs.

    The first of these that holds decides:

    - ``planted``: a fault was planted in the cell. No declaration is about such a cell, and it is never green.
    - something went wrong that was not declared. It may be a stage, a failed check, a stage that was not run for no
      reason, or an outcome that no stage accounts for. By its cause that is ``environment`` (the machine's fault),
      ``regression`` (the cell has passed before), ``unresolvable``, ``unsupported``, or ``new``.
    - ``unexpected-pass``: a declared failure did not happen although its stage passed.
    - ``known-failure``, or ``flaky``: a declared failure happened.
    - ``ok``: the rest.
    """
    if (planted := planted_fault(result)) is not None:
        return Verdict(status="planted", sentence=_of_planted(planted, result))
    known_to_pass = passed_before or result.last_passed is not None
    applicable = [expectation for expectation in expectations if expectation.applies(result.cell)]
    decided: dict[StageName, Expectation] = {}
    for stage in STAGES:
        describing = (
            item for item in applicable if stage in result.stages and item.describes(stage, result.stages[stage])
        )
        if (found := next(describing, None)) is not None:
            decided[stage] = found
    if problem := _undeclared(result, applicable, decided):
        return problem.verdict(passed_before=known_to_pass)
    if (shrunk := _against_recipe(result, shipped_recipes() if recipes is None else recipes)) is not None:
        return _Problem(sentence=shrunk).verdict(passed_before=known_to_pass)
    for expectation in applicable:
        stage_result = result.stages.get(expectation.stage)
        if stage_result is not None and stage_result.result == "pass" and not expectation.flaky:
            wanted = f"{expectation.outcome}, as declared since {expectation.since}: {expectation.reason}"
            sentence = f"{expectation.stage} passed; it was expected to end in {wanted}"
            return Verdict(status="unexpected-pass", expectation=expectation, sentence=sentence)
    if decided:
        return _as_declared(decided.values())
    return Verdict(status="ok", sentence=result.reason or "every stage passed")


def _as_declared(decided: Iterable[Expectation]) -> Verdict:
    """Return the verdict of a cell in which all that went wrong was declared, by what says most about it.

    A failure says more than what a stack lacks, and one that is certain more than one that comes and goes.
    """
    expectation = min(decided, key=lambda item: (item.outcome in HARMLESS, item.flaky))
    status: Status = "flaky" if expectation.flaky else "known-failure"
    if expectation.outcome in HARMLESS:
        status = "ok"
    sentence = f"{expectation.stage} ended in {expectation.outcome}, as declared: {expectation.reason}"
    return Verdict(status=status, expectation=expectation, sentence=sentence)


def _of_planted(planted: PlantedFault, result: CellResult) -> str:
    """Say whether the gates noticed the fault, which must happen and never passes, and what else went wrong."""
    if planted.alone or (problem := _undeclared(result, (), {})) is None:
        return planted.sentence
    return f"{planted.sentence}; {problem.sentence}"


def _undeclared(
    result: CellResult, applicable: Sequence[Expectation], decided: Mapping[StageName, Expectation]
) -> _Problem | None:
    """Return the first thing that went wrong and was not declared, or None."""
    for stage in STAGES:
        outcome = _stage_result(result, stage)
        if outcome.result == "not_run" and not _explained(result, stage):
            return _Problem(sentence=f"{stage} was not run, although all it needs passed")
        if outcome.result not in {"pass", "not_run"} and stage not in decided:
            declared = next((item for item in applicable if item.stage == stage), None)
            words = f" with {declared.match!r}" if declared and declared.match else ""
            instead = f" (declared: {declared.outcome}{words})" if declared else ""
            sentence = f"{stage} ended in {outcome.result}: {outcome.reason or 'no reason given'}{instead}"
            return _Problem(sentence=sentence, outcome=outcome.result, declared=declared)
    for check in result.checks:
        covering = decided.get(check.stage)
        if not check.passed and not (covering and covering.covers(check.name)):
            said = failed_in_words(check.name, check.value, check.band, check.detail)
            return _Problem(sentence=f"a check of {check.stage} failed: {said}")
    overall = worst(item.result for item in result.stages.values() if item.result != "not_run")
    if result.outcome != overall:
        return _Problem(
            sentence=f"the outcome is {result.outcome}, but the stages say {overall}: "
            f"{result.reason or 'no reason given'}"
        )
    unshown = _unshown(result)
    return None if unshown is None else _Problem(sentence=unshown)


def _unshown(result: CellResult) -> str | None:
    """Say what was not shown of that which the result claims, or None."""
    if result.outcome == "pass" and (lacking := missing_evidence(result)) is not None:
        return f"the result says pass, but {lacking}"
    if (found := missing_of_stages(result)) is not None:
        stage, lacking = found
        return f"{stage} ended in {_stage_result(result, stage).result}, but {lacking}"
    return None


def _against_recipe(result: CellResult, recipes: Mapping[str, RecipeFacts]) -> str | None:
    """Say how a result's facts contradict its recipe, or None: a worker's facts decide what it must show."""
    recipe, facts = recipes.get(result.cell.recipe), result.facts
    if facts is None:
        return None
    if recipe is None:
        return f"{result.cell.recipe} is no recipe of this release, so nobody can say what it must show"
    if surplus := set(facts.kinds) - set(recipe.kinds):
        return f"its facts say that {', '.join(sorted(surplus))} got a LoRA, and its recipe does not"
    lost = set(recipe.kinds) & EVERYWHERE - set(facts.kinds)
    told = recipe.as_written and any(
        (c.name, c.stage, c.passed) == ("attached", "attach", False) for c in result.checks
    )
    if lost and not told:  # what a stack makes less of than was meant, its check says
        return f"its recipe says that {', '.join(sorted(lost))} got a LoRA, and its facts do not"
    sayings = {
        "quantized": ("the base is quantised", "the base is not quantised"),
        "plain_batches": ("steps are plain batches", "steps are no plain batches"),
        "resumed": ("training is resumed", "training is not resumed"),
        "per_expert": ("a pair for every expert is loaded", "no pair for every expert is loaded"),
    }
    for name, (yes, no) in sayings.items():
        if getattr(facts, name) != getattr(recipe, name):
            said = yes if getattr(recipe, name) else no
            return f"its recipe says that {said}, and its facts say otherwise"
    return None


@cache
def shipped_recipes() -> Mapping[str, RecipeFacts]:
    """What the recipes of this release say of their cells."""
    return read_catalogue().facts_of


def _stage_result(result: CellResult, stage: StageName) -> StageResult:
    """Return what became of a stage; one that the result does not mention was not run."""
    if result.cell.unmanaged and stage in {"resolve", "install"}:
        return StageResult(result="pass", reason="the interpreter was given")
    return result.stages.get(stage) or StageResult(result="not_run")


def _explained(result: CellResult, stage: StageName) -> bool:
    """Say whether something that ``stage`` needs, directly or not, was run and did not pass.

    Where its process ended in a stage before it, that explains it as well.
    """
    if any(_stage_result(result, before).result in ENDS_PROCESS for before in TABLE[stage].after):
        return True
    return any(
        _stage_result(result, need).result not in {"pass", "not_run"} or _explained(result, need)
        for need in TABLE[stage].needs
    )
