"""What ended stages and measured checks amount to: the central claim's own function, with values worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from contract_samples import ADAPTER, ALL_CHECKS, BASE_SHA256, FACTS, METRICS, PASSED, REJECTED, TRAINING
from execution_helpers import cell

from harness.contract.outcomes import Ended, Outcome
from harness.contract.stages import TABLE, WORKER_STAGES, StageName
from harness.execution.decision import EndedStage, Interruption, decide
from harness.result import (
    AdapterInfo,
    CellResult,
    Check,
    ControlResult,
    MergeCounts,
    Metrics,
    StageResult,
    Training,
)

VERSIONS = {"transformers": "5.5.0", "peft": "0.19.1", "trl": "0.25.1", "torch": "2.13.0+cpu"}


def failed(name: str, stage: StageName = "compare", *, value: Any = 1.0) -> Check:
    return Check(name=name, stage=stage, value=value, band="any", passed=False)


def measured(**changes: Any) -> CellResult:
    """All that a passing cell measured, with ``changes``; nothing is decided yet."""
    subject = cell()
    changes = {"cell": subject, "cell_id": subject.id} | changes
    fields: dict[str, Any] = {
        "versions": VERSIONS,
        "facts": FACTS,
        "adapter": AdapterInfo.model_validate(ADAPTER),
        "merge": MergeCounts(attempted=6, applied=6),
        "checks": [Check.model_validate(check) for check in PASSED],
        "metrics": Metrics(**METRICS),
        "training": Training.model_validate(TRAINING),
        "base_sha256": BASE_SHA256,
        "device": "cpu",
        "controls": [ControlResult.model_validate(control) for control in REJECTED],
        "stages": {"resolve": StageResult(result="pass"), "install": StageResult(result="pass")},
    }
    return CellResult(outcome="error", **(fields | changes))


def completed(**others: Ended) -> dict[StageName, EndedStage]:
    """Every stage of the worker, completed unless another end is given."""
    ends: dict[str, Ended] = {name.replace("_", "-"): end for name, end in others.items()}
    return {
        name: EndedStage(ended=ends.get(name, "completed"), seconds=1.0, reason=f"{name}'s reason")
        for name in WORKER_STAGES
    }


def failing(*names: str, value: Any = 1.0) -> list[Check]:
    """All checks of a cell, of which those named fail in the compare stage."""
    passed = [Check.model_validate(check) for check in PASSED]
    kept = [check for check in passed if not (check.name in names and check.stage == "compare")]
    return [*kept, *(failed(name, value=value) for name in names)]


def test_everything_shown_is_a_pass() -> None:
    result = decide(measured(), completed())

    assert (result.outcome, result.stage, result.reason) == ("pass", None, None)


@pytest.mark.parametrize(("name", "stage"), [pair for pair in ALL_CHECKS if pair[1] != "controls"])
def test_a_pass_without_any_one_check_is_an_error(name: str, stage: StageName) -> None:
    without = [item for item in measured().checks if (item.name, item.stage) != (name, stage)]
    result = decide(measured(checks=without), completed())

    assert result.outcome == "error"
    assert result.stage == stage
    assert result.reason == f"it completed, but these checks are not there: {name} ({stage})"


@pytest.mark.parametrize(("name", "stage"), ALL_CHECKS)
def test_any_one_failed_check_is_no_pass(name: str, stage: StageName) -> None:
    checks = [failed(name, stage) if (item.name, item.stage) == (name, stage) else item for item in measured().checks]
    result = decide(measured(checks=checks), completed())
    expected = "blind" if name == "signal" or name.startswith("control:") else "fail"

    assert (result.outcome, result.stage) == (expected, stage)
    assert result.reason == f"{name} is 1, the band is any"


@pytest.mark.parametrize(
    ("merge", "failed", "expected"),
    [
        ({"attempted": 6, "applied": 6}, (), "pass"),
        ({"attempted": 4, "applied": 3, "dropped": 1}, ("applied", "kl"), "fail"),
        ({"attempted": 4, "dropped": 4}, ("applied", "kl"), "noop"),
        ({"attempted": 4, "zero_delta": 1, "dropped": 3}, ("applied",), "noop"),
        ({"attempted": 4, "below_rounding": 3, "dropped": 1}, ("applied",), "noop"),
        ({"attempted": 0}, ("applied",), "noop"),
        ({"attempted": 6, "applied": 6}, ("signal",), "blind"),
        ({"attempted": 6, "applied": 6}, ("signal", "kl"), "fail"),
    ],
)
def test_the_compare_stage_s_outcome(merge: dict[str, int], failed: tuple[str, ...], expected: Outcome) -> None:
    result = decide(measured(merge=MergeCounts(**merge), checks=failing(*failed)), completed())

    assert result.stages["compare"].result == expected


@pytest.mark.parametrize("nan", [float("nan"), "nan"])
def test_a_cell_without_a_clear_position_is_blind_and_not_a_failed_merge(nan: float | str) -> None:
    result = decide(measured(checks=failing("signal", "kl", "logprob", value=nan)), completed())

    assert (result.outcome, result.stage) == ("blind", "compare")


def test_a_number_that_is_infinite_was_seen() -> None:
    result = decide(measured(checks=failing("signal", "kl", value="inf")), completed())

    assert result.outcome == "fail"


@pytest.mark.parametrize(
    ("how", "out_of_memory", "expected"),
    [
        (EndedStage(ended="raised", reason="TypeError: x"), False, "error"),
        (EndedStage(ended="unsupported", reason="no such model"), False, "unsupported"),
        (EndedStage(ended="died", reason="exit code 3"), False, "error"),
        (EndedStage(ended="died", signal=11), False, "crash"),
        (EndedStage(ended="died", signal=11), True, "crash"),
        (EndedStage(ended="died", signal=9), False, "crash"),
        (EndedStage(ended="died", signal=9), True, "oom"),
    ],
)
def test_what_the_end_of_a_stage_is(how: EndedStage, out_of_memory: bool, expected: Outcome) -> None:
    ended: dict[StageName, EndedStage] = {"import": EndedStage(ended="completed"), "build": how}
    result = decide(measured(), ended, out_of_memory=out_of_memory)

    assert (result.outcome, result.stage, result.reason) == (expected, "build", how.reason)
    assert result.stages["load"].reason == f"needs build, which ended in {expected}"


def test_a_failed_check_of_a_stage_that_nobody_heard_of_counts() -> None:
    ended = completed()
    del ended["train"]
    checks = [item for item in measured().checks if item.name != "loss"]
    result = decide(measured(checks=[*checks, failed("loss", "train")]), ended)

    assert result.stages["train"].result == "fail"


def test_an_interruption_never_softens_what_was_known() -> None:
    ended = completed(merge="died")
    softer = Interruption(stage="merge", outcome="timeout", reason="too long")
    known = {**ended, "merge": EndedStage(ended="died", signal=6, reason="killed by signal 6")}

    assert decide(measured(), known, interruption=softer).stages["merge"].result == "crash"
    harder = Interruption(stage="merge", outcome="crash", reason="killed by SIGSEGV")
    assert decide(measured(), ended, interruption=harder).stages["merge"].result == "crash"


def test_the_host_s_own_findings_outrank_the_worker_s() -> None:
    """An import of another version than the environment holds is an error, however well it went."""
    found = {**measured().stages, "import": StageResult(result="error", reason="imported peft 9")}
    result = decide(measured(stages=found), completed())

    assert (result.outcome, result.stage, result.reason) == ("error", "import", "imported peft 9")


@pytest.mark.parametrize(("name", "stage"), [pair for pair in ALL_CHECKS if pair[1] != "reload-adapter"])
def test_a_failure_elsewhere_takes_no_evidence_away(name: str, stage: StageName) -> None:
    """One declared failure, of the adapter's reload, must not hide that another stage showed nothing."""
    without = [item for item in measured().checks if (item.name, item.stage) != (name, stage)]
    ended: dict[StageName, EndedStage] = {**completed(), "reload-adapter": EndedStage(ended="raised", reason="known")}
    result = decide(measured(checks=without), ended)

    assert result.stages[stage].result == "error"


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({"merge": None}, "compare"),
        ({"controls": []}, "controls"),
        ({"facts": None}, "attach"),
        ({"adapter": None}, "save"),
        ({"versions": {}}, "import"),
        ({"cell": cell(device="cuda"), "cell_id": cell(device="cuda").id, "device": "cuda"}, "load"),
    ],
)
def test_what_a_stage_stands_for_must_be_there_whatever_failed(changes: dict[str, Any], stage: StageName) -> None:
    ended: dict[StageName, EndedStage] = {**completed(), "reload-adapter": EndedStage(ended="raised", reason="known")}
    result = decide(measured(**changes), ended)

    assert result.stages[stage].result == "error"
    assert str(result.stages[stage].reason).startswith("it completed, but ")


def test_a_merge_that_cannot_be_loaded_again_is_judged_by_its_bytes() -> None:
    """What only a loaded model can say is not there, and the reload has a failure of its own."""
    of_the_model = {"signal", "kl", "logprob", "samples"}
    checks = [item for item in measured().checks if item.name not in of_the_model]
    ended: dict[StageName, EndedStage] = {**completed(), "reload-merged": EndedStage(ended="raised", reason="no")}

    assert decide(measured(checks=checks), ended).stages["compare"].result == "pass"
    assert decide(measured(checks=checks), completed()).stages["compare"].result == "error"


def test_a_control_that_was_let_through_blinds_the_cell_whatever_the_checks_say() -> None:
    others = [control for control in measured().controls if control.name != "base-copied"]
    controls = [ControlResult(name="base-copied", rejected=False), *others]
    ended: dict[StageName, EndedStage] = {**completed(), "reload-adapter": EndedStage(ended="raised", reason="known")}
    for ends in (completed(), ended):
        result = decide(measured(controls=controls), ends)

        assert result.stages["controls"].result == "blind"
        assert result.stages["controls"].reason == "controls that were not rejected: base-copied"


@pytest.mark.parametrize("how", ["raised", "unsupported", "died"])
@pytest.mark.parametrize("name", [name for name in WORKER_STAGES if name != "import"])
def test_what_ended_without_its_ground_is_an_error(name: StageName, how: Ended) -> None:
    for need in TABLE[name].needs:
        ended: dict[StageName, EndedStage] = {**completed(), need: EndedStage(ended=how, reason="why")}
        absent = {other: end for other, end in completed().items() if other != need}

        assert decide(measured(), ended).stages[name].result == "error"
        assert decide(measured(), absent).stages[name].result == "error"


def test_deciding_changes_nothing_that_was_given() -> None:
    given = measured()
    before = given.model_dump_json()
    decide(given, completed(merge="raised"), interruption=Interruption(stage="save", outcome="oom", reason="x"))

    assert given.model_dump_json() == before


def unsampled(*stages: StageName) -> list[Check]:
    """All checks but those of some stages, and but that of samples, which needs both models to generate."""
    checks = [Check.model_validate(check) for check in PASSED]
    return [check for check in checks if check.stage not in stages and not check.name.endswith("samples")]


def test_a_model_that_cannot_generate_is_merged_and_judged_all_the_same() -> None:
    ended = completed(generate="raised")
    del ended["generate-merged"]
    result = decide(measured(checks=unsampled("generate")), ended)

    assert (result.outcome, result.stage, result.reason) == ("error", "generate", "generate's reason")
    assert result.stages["generate-merged"].reason == "needs generate, which ended in error"
    others = {
        name: stage.result for name, stage in result.stages.items() if name not in {"generate", "generate-merged"}
    }
    assert set(others.values()) == {"pass"}


def test_samples_that_both_models_gave_must_be_compared() -> None:
    result = decide(measured(checks=unsampled()), completed())

    assert (result.outcome, result.stage) == ("error", "compare")
    assert "samples (compare)" in (result.reason or "")


def test_what_shared_a_process_with_a_crash_could_not_be_run() -> None:
    ended = completed() | {"generate": EndedStage(ended="died", signal=11, reason="killed")}
    del ended["generate-merged"], ended["forward-paths"]
    result = decide(measured(checks=unsampled("generate", "forward-paths")), ended)

    assert (result.outcome, result.stage) == ("crash", "generate")
    assert result.stages["forward-paths"].reason == "its process ended in generate, which ended in crash"
    assert result.stages["compare"].result == "pass"


@pytest.mark.parametrize(
    ("not_possible", "compared", "outcome"),
    [
        ({"grouped_forward": "has_gate = None"}, {}, "pass"),
        ({"grouped_forward": "has_gate = None"}, {"grouped_mm": {"logits": 0.0, "gradients": 0.0}}, "error"),
        ({}, {}, "error"),
        ({"lora-on-conv1d": "it is none of what is compared"}, {}, "error"),
    ],
)
def test_a_comparison_of_which_nothing_is_possible_need_not_be_there(
    not_possible: dict[str, str], compared: dict[str, Any], outcome: str
) -> None:
    checks = [check for check in measured().checks if check.stage != "forward-paths"]
    result = decide(measured(checks=checks, not_possible=not_possible, forward_paths=compared), completed())

    assert result.outcome == outcome


def test_a_check_that_failed_within_its_band_says_why_and_not_that_the_value_is_wrong() -> None:
    off = Check(
        name="forward_paths", stage="forward-paths", value=1.54e-06, band="<= 0.0001, on all of grouped_mm",
        passed=False, detail="grouped_mm was chosen and not taken",
    )  # fmt: skip
    others = [check for check in measured().checks if check.name != "forward_paths"]
    result = decide(measured(checks=[*others, off]), completed())

    assert result.reason == (
        "forward_paths: grouped_mm was chosen and not taken "
        "(its value, 1.54e-06, is within its band, <= 0.0001, on all of grouped_mm)"
    )
