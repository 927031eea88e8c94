"""What a result must show to be believed, stage by stage.

A stage that came to its end stands for something: that its checks were made, that a merge was counted, that controls
were tried. Whatever else happened in the cell, it must be there. So a failure that was declared in one stage takes away
no evidence of another. A fresh decision and a result that is read from disk are held to the same.
"""

from __future__ import annotations

import re

from harness.contract import checks
from harness.contract.readings import is_all, lies_within
from harness.contract.stages import STAGES, WORKER_STAGES, StageName
from harness.definitions import is_defined
from harness.faults import Facts, applicable_controls
from harness.result import CellResult

ENDED = ("pass", "noop", "fail", "blind")
"""What a stage amounts to that came to its end."""

QUANTIZED_EXPERTS = "experts"
"""The kind of parameters that a QLoRA cell is about, as a worker names it (``worker/stages/quantized.py``)."""

_VERSIONS = ("transformers", "peft", "trl", "torch")


def missing_evidence(result: CellResult) -> str | None:
    """Say what a pass lacks to be believed, or None.

    It needs every stage and what each must show, checks that passed, a whole merge and rejected controls.
    """
    unfinished = [name for name in STAGES if _stage(result, name) != "pass"]
    if unfinished:
        return f"these stages did not pass: {', '.join(unfinished)}"
    if (found := missing_of_stages(result)) is not None:
        return found[1]
    failed = sorted({check.name for check in result.checks if not check.passed})
    lost = [kind for kind, funnel in result.funnel.items() if not funnel.whole]
    if failed or lost:
        by_name = f"these checks failed: {', '.join(failed)}"
        return by_name if failed else f"not all that was asked for was merged: {', '.join(lost)}"
    merge = result.merge
    if merge is None or merge.attempted == 0 or merge.dropped or merge.wrong:
        return "the merge's counts do not show that everything attempted was applied"
    if result.cell.fault is not None:
        return f"{result.cell.fault} was planted in its own merge, so that it cannot pass"
    return None


def missing_of_stages(result: CellResult) -> tuple[StageName, str] | None:
    """Return the first stage of the worker that came to its end without its evidence, and what is missing."""
    found = ((name, missing_of_stage(result, name)) for name in WORKER_STAGES)
    return next(((name, lacking) for name, lacking in found if lacking is not None), None)


def missing_of_stage(result: CellResult, name: StageName) -> str | None:
    """Say what a stage lacks that came to its end; None when nothing, or when it did not."""
    if _stage(result, name) not in ENDED:
        return None
    lacking = {
        "import": _missing_versions,
        "build": _missing_base,
        "load": _missing_device,
        "attach": _missing_facts,
        "train": _missing_training,
        "save": _missing_adapter,
        "compare": _missing_counts,
        "controls": _missing_controls,
    }.get(name)
    found = lacking(result) if lacking is not None else None
    return found or _missing_checks(result, name) or _contradicted_check(result, name)


def _missing_checks(result: CellResult, name: StageName) -> str | None:
    """Say which checks of a stage are not there, of those that apply to the cell and had something to measure."""
    if result.facts is None:
        return None  # the attach stage answers for that
    seen = {check.name for check in result.checks if check.stage == name}
    lacking = [
        check.name
        for check in checks.needed(result.facts)
        if check.stage == name
        and check.name not in seen
        and (check.measured_on is None or _stage(result, check.measured_on) == "pass")
        and not (set(check.optional) & result.not_possible.keys() and not result.forward_paths)
    ]
    return f"these checks are not there: {', '.join(f'{check} ({name})' for check in lacking)}" if lacking else None


def _contradicted_check(result: CellResult, name: StageName) -> str | None:
    """Say which check of a stage is said to have passed although its own numbers do not show it."""
    for check in result.checks:
        if check.stage != name or not check.passed:
            continue
        if check.name.startswith(checks.CONTROL):
            # What decides is not always the value alone, where that is a count.
            if isinstance(check.value, float) and lies_within(check.value, check.band.removeprefix("not ")):
                return f"{check.name} ({name}) is said to be rejected with {check.value}, the band being {check.band}"
            continue
        row = checks.find(check.name, check.stage)
        within = is_all(check.value) if row.counts_all else lies_within(check.value, check.band)
        if not within:
            return f"{check.name} ({name}) is said to have passed with {check.value}, its band being {check.band}"
        metrics = (getattr(result.metrics, metric) for metric in row.metrics)
        metric = next((number for number in metrics if number is not None), None)
        if row.metrics and metric != check.value:
            return f"{check.name} ({name}) is {check.value}, and {metric} among the metrics"
    return None


def _missing_versions(result: CellResult) -> str | None:
    unknown = [name for name in _VERSIONS if name not in result.versions]
    return f"versions that are not recorded: {', '.join(unknown)}" if unknown else None


def _missing_base(result: CellResult) -> str | None:
    """The base has the same bytes in every stack, which nobody can see without their hash."""
    if result.base_sha256 is None or not re.fullmatch("[0-9a-f]{64}", result.base_sha256):
        return f"the hash of the base is {result.base_sha256}"
    return None


def _missing_device(result: CellResult) -> str | None:
    """A cell that computed on a GPU names it: ``cuda`` is what it was asked for. Another computed on the CPU."""
    if result.cell.device == "cuda" and result.device in {None, "cpu", "cuda"}:
        return f"no GPU is named, the device is {result.device}"
    if result.cell.device == "cpu" and result.device != "cpu":
        return f"it was to compute on the CPU, and the device is {result.device}"
    if result.quantization is None:
        return None
    experts = result.quantization.kinds.get(QUANTIZED_EXPERTS)
    if _passed(result, "quantized") and (experts is None or experts.plain or not experts.quantized):
        return "the weights of the experts are said to be quantised, and their counts say otherwise"
    return None


def _missing_training(result: CellResult) -> str | None:
    """The loss is measured before and after, and its check is about both."""
    loss = result.training.loss if result.training is not None else []
    if _passed(result, "loss") and not (len(loss) > 1 and loss[-1] < loss[0]):
        return f"the loss is said to have fallen, and it is {loss}"
    return None


def _missing_facts(result: CellResult) -> str | None:
    """Facts decide which checks a pass needs, so they may not contradict what else was seen."""
    if result.facts is None:
        return "nothing is known of what was attached"
    if not result.facts.kinds:
        return "nothing got a LoRA, as its facts say"
    if result.facts.quantized != (result.quantization is not None):
        said = "quantised" if result.facts.quantized else "not quantised"
        return f"its facts say that the base is {said}, and its quantisation says otherwise"
    if result.facts.defined != is_defined(result.cell.family):
        said = "has" if result.facts.defined else "has no"
        return f"its facts say that {result.cell.family} {said} definition here, which is not so"
    return None


def _missing_adapter(result: CellResult) -> str | None:
    if result.adapter is None:
        return "what the adapter is was not recorded, so nobody can say which controls it must have"
    facts = result.facts
    fused = facts is not None and facts.fused_experts and "expert" in facts.kinds
    if facts is not None and fused != (result.adapter.num_experts is not None):
        said = "has" if fused else "has no"
        return f"its facts say that the adapter {said} fused experts, and the adapter says otherwise"
    return None


def _missing_counts(result: CellResult) -> str | None:
    """Counts may not contradict the check of them, nor the kinds that got a LoRA."""
    merge, facts = result.merge, result.facts
    if merge is None:
        return "the merge's counts are not there"
    rightly = f"{merge.attempted - merge.dropped - merge.wrong}/{merge.attempted}"
    for check in result.checks:
        if check.name == "applied" and check.passed and check.value != rightly:
            return f"applied is {check.value}, and {rightly} by the merge's counts"
    kinds = set() if facts is None else {*facts.kinds, *(("embedding", "head") if facts.resized else ())}
    if facts is not None and merge.by_kind and not set(merge.by_kind) <= kinds:
        return f"its facts say that {', '.join(facts.kinds)} got a LoRA, and the merge's counts say otherwise"
    return None


def _missing_controls(result: CellResult) -> str | None:
    """Say which control was let through in a stage that passed, or was not tried.

    All count that apply to the cell by the facts that its result holds.
    """
    adapter, known = result.adapter, result.facts
    if adapter is None or known is None:
        return "what the adapter is was not recorded, so nobody can say which controls it must have"
    accepted = [control.name for control in result.controls if not control.rejected]
    if accepted and _stage(result, "controls") == "pass":
        return f"controls that were not rejected: {', '.join(accepted)}"
    facts = Facts.of(adapter.model_dump(), dtype=result.cell.dtype, quantized=known.quantized)
    checked = {check.name for check in result.checks}
    tried = {control.name for control in result.controls if f"{checks.CONTROL}{control.name}" in checked}
    untried = [name for name in applicable_controls(facts) if name not in tried]
    return f"controls that apply and were not tried: {', '.join(untried)}" if untried else None


def _passed(result: CellResult, name: str) -> bool:
    """Say whether a check of that name, which one stage has, is there and passed."""
    return any(check.name == name and check.passed for check in result.checks)


def _stage(result: CellResult, name: StageName) -> str:
    """Return a stage's result; an interpreter that the user gave needs neither resolving nor installing."""
    if result.cell.unmanaged and name in {"resolve", "install"}:
        return "pass"
    return result.stages[name].result if name in result.stages else "not_run"
