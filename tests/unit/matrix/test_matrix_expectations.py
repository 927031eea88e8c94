"""Declaring known failures, and what a result means in their light."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import get_args

import pytest
from contract_samples import ADAPTER, ALL_CHECKS, BASE_SHA256, FACTS, METRICS, PASSED, REJECTED, TRAINING
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.contract.facts import CellFacts
from harness.contract.outcomes import OUTCOMES, Outcome, worst
from harness.contract.stages import STAGES, StageName
from harness.errors import ConfigurationError, UnknownNameError
from harness.matrix.catalogue import Catalogue
from harness.matrix.cell import Cell, Stack
from harness.matrix.config import MatrixConfig
from harness.matrix.expectations import DeclaredOutcome, Expectation, check_expectations, load_expectations
from harness.matrix.verdict import judge
from harness.result import (
    AdapterInfo,
    CellResult,
    Check,
    ControlResult,
    Funnel,
    MergeCounts,
    Metrics,
    QuantizationInfo,
    StageResult,
    Training,
)

STACK = Stack(transformers="5.6.2", peft="0.19.1", trl="1.4.0", pins={"torch": "2.13.0"})
CELL = Cell(family="qwen3_moe", recipe="lora", stack=STACK)

RELOAD = Expectation(
    when="transformers>=5.6.2, peft==0.19.1",
    stage="reload-adapter",
    outcome="error",
    match="distributed_operation",
    reason="the converter takes no such argument",
    since="transformers 5.6.2",
)
TRAIN = Expectation(cells=("qwen3_moe/*",), stage="train", outcome="error", reason="no forward", since="2026-11-01")
FAILURES = tuple(outcome for outcome in get_args(DeclaredOutcome) if outcome != "unsupported")
TYPE_ERROR = "TypeError: unexpected keyword argument 'distributed_operation'"


def result(
    stages: Mapping[str, str] = MappingProxyType({}),
    *,
    cell: Cell = CELL,
    checks: tuple[Check, ...] = (),
    outcome: Outcome | None = None,
) -> CellResult:
    """A result whose stages all passed but those given, as ``{"reload-adapter": "error: why"}``, or ``absent``."""
    made = {name: StageResult(result="pass") for name in STAGES}
    for name in STAGES:
        kind, _, reason = stages.get(name, "pass").partition(": ")
        if kind == "absent":
            del made[name]
        else:
            made[name] = StageResult.model_validate({"result": kind, "reason": reason or None})
    overall = outcome or worst(stage.result for stage in made.values() if stage.result != "not_run")
    named = {check.name for check in checks}
    passed = [Check.model_validate(check) for check in PASSED if check["name"] not in named]
    return CellResult(
        cell=cell,
        cell_id=cell.id,
        outcome=overall,
        stages=made,
        checks=[*checks, *passed],
        facts=FACTS,
        metrics=Metrics(**METRICS),
        training=Training.model_validate(TRAINING),
        base_sha256=BASE_SHA256,
        device="cpu",
        merge=MergeCounts(attempted=6, applied=6),
        adapter=AdapterInfo.model_validate(ADAPTER),
        controls=[ControlResult.model_validate(control) for control in REJECTED],
        versions=dict.fromkeys(("transformers", "peft", "trl", "torch"), "1"),
    )


def after(stage: StageName, kind: str) -> dict[str, str]:
    """The stages after ``stage``, all of one kind."""
    return dict.fromkeys(STAGES[STAGES.index(stage) + 1 :], kind)


def failed(name: str, stage: StageName) -> Check:
    return Check(name=name, stage=stage, value=0.5, band="<= 1e-09", passed=False)


def test_every_stage_passed_is_ok() -> None:
    verdict = judge(result(), [])

    assert (verdict.status, verdict.expectation) == ("ok", None)


@pytest.mark.parametrize("outcome", [name for name in OUTCOMES if name != "pass"])
@pytest.mark.parametrize("stage", STAGES)
def test_any_failure_that_nobody_declared_is_a_new_failure(stage: StageName, outcome: str) -> None:
    verdict = judge(result({stage: f"{outcome}: because"}), [])

    by_cause = {"skipped": "environment", **{name: name for name in ("environment", "unresolvable", "unsupported")}}
    assert verdict.status == by_cause.get(outcome, "new")
    assert verdict.sentence == f"{stage} ended in {outcome}: because"


@pytest.mark.parametrize("outcome", [name for name in OUTCOMES if name != "pass"])
def test_only_what_has_passed_before_is_a_regression(outcome: str) -> None:
    """By a baseline, or by the result itself. What is the machine's fault is that whatever the cell did before."""
    seen = result({"load": f"{outcome}: because"})
    known = seen.model_copy(update={"last_passed": "2026-11-01T00:00:00Z"})
    wanted = "environment" if outcome in {"environment", "skipped"} else "regression"

    assert judge(seen, [], passed_before=True).status == wanted
    assert judge(known, []).status == wanted
    assert judge(seen, []).status != "regression"


def test_having_passed_before_makes_no_pass_and_no_known_failure_anything_else() -> None:
    known = result({"reload-adapter": f"error: {TYPE_ERROR}"})

    assert judge(result(), [], passed_before=True).status == "ok"
    assert judge(known, [RELOAD], passed_before=True).status == "known-failure"


def test_a_check_that_failed_for_another_reason_than_its_band_says_that_reason() -> None:
    check = Check(
        name="forward_paths", stage="forward-paths", value=1.54e-06, band="<= 0.0001, on all of grouped_mm",
        passed=False, detail="grouped_mm was chosen and not taken",
    )  # fmt: skip
    sentence = judge(result(checks=(check,)), []).sentence

    assert sentence == (
        "a check of forward-paths failed: forward_paths: grouped_mm was chosen and not taken "
        "(its value, 1.54e-06, is within its band, <= 0.0001, on all of grouped_mm)"
    )


LACKING = RELOAD.model_copy(
    update={"stage": "load", "outcome": "unsupported", "match": "does not recognize", "reason": "no such family"}
)


def test_what_the_library_lacks_is_ok_where_it_is_declared_and_not_elsewhere() -> None:
    seen = result({"load": "unsupported: it does not recognize this", **after("load", "not_run")})
    known, other = judge(seen, [LACKING, RELOAD]), judge(seen, [RELOAD])

    assert (known.status, known.expectation) == ("ok", LACKING)
    assert known.sentence == "load ended in unsupported, as declared: no such family"
    assert other.status == "unsupported"
    assert other.sentence == "load ended in unsupported: it does not recognize this"
    assert judge(result(), [LACKING]).status == "unexpected-pass"


def test_a_failure_weighs_more_than_what_is_lacking() -> None:
    both = {"load": "unsupported: it does not recognize this", "reload-adapter": f"error: {TYPE_ERROR}"}

    assert judge(result(both), [LACKING, RELOAD]).status == "known-failure"


def test_a_stage_after_the_family_was_there_cannot_lack_it() -> None:
    with pytest.raises(ValueError, match="cannot lack in merge"):
        Expectation.model_validate({**LACKING.model_dump(), "stage": "merge"})


def test_a_declared_failure_is_known() -> None:
    verdict = judge(result({"reload-adapter": f"error: {TYPE_ERROR}"}), [TRAIN_ELSEWHERE, RELOAD])

    assert (verdict.status, verdict.expectation) == ("known-failure", RELOAD)


TRAIN_ELSEWHERE = TRAIN.model_copy(update={"cells": ("beta/*",)})


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"reload-adapter": "error: KeyError: 'x'"}, "declared: error with 'distributed_operation'"),
        ({"reload-adapter": f"crash: {TYPE_ERROR}"}, "reload-adapter ended in crash"),
        ({"reload-adapter": f"error: {TYPE_ERROR}", "merge": "fail: wrong"}, "merge ended in fail: wrong"),
        (
            {"reload-adapter": f"error: {TYPE_ERROR}", "controls": "blind: a copy got through"},
            "controls ended in blind",
        ),
        ({"reload-adapter": f"error: {TYPE_ERROR}", "compare": "not_run"}, "compare was not run"),
        ({"reload-adapter": f"error: {TYPE_ERROR}", "merge": "absent"}, "merge was not run"),
    ],
)
def test_whatever_else_goes_wrong_in_the_cell_is_a_new_failure(stages: dict[str, str], words: str) -> None:
    verdict = judge(result(stages), [RELOAD])

    assert verdict.status == "new"
    assert words in verdict.sentence


def test_a_failed_check_elsewhere_is_a_new_failure() -> None:
    checks = (failed("adapter_reload", "reload-adapter"), failed("kl", "compare"))
    verdict = judge(result({"reload-adapter": f"error: {TYPE_ERROR}"}, checks=checks), [RELOAD])

    assert verdict.status == "new"
    assert verdict.sentence == "a check of compare failed: kl is 0.5, the band is <= 1e-09"


def test_a_failed_check_of_the_declared_stage_belongs_to_it() -> None:
    verdict = judge(
        result({"reload-adapter": f"error: {TYPE_ERROR}"}, checks=(failed("adapter_reload", "reload-adapter"),)),
        [RELOAD],
    )

    assert verdict.status == "known-failure"


def test_an_expectation_can_name_the_checks_that_fail() -> None:
    expected = Expectation(
        cells=("*",), stage="compare", outcome="fail", checks=("kl", "control:*"), reason="rounding", since="always"
    )
    kl = {"compare": "fail: kl"}
    known = judge(result(kl, checks=(failed("kl", "compare"),)), [expected])
    other = judge(result(kl, checks=(failed("kl", "compare"), failed("applied", "compare"))), [expected])

    assert (known.status, other.status) == ("known-failure", "new")
    assert "a check of compare failed: applied is 0.5" in other.sentence


def test_a_failed_check_in_a_cell_that_passed_is_a_new_failure() -> None:
    assert judge(result(checks=(failed("loss", "train"),)), []).status == "new"


def test_a_declared_failure_that_passes_is_unexpected() -> None:
    verdict = judge(result(), [RELOAD])

    assert (verdict.status, verdict.expectation) == ("unexpected-pass", RELOAD)


def test_a_new_failure_outranks_an_unexpected_pass() -> None:
    assert judge(result({"merge": "fail: dropped"}), [RELOAD]).status == "new"


def test_what_needed_a_stage_that_is_known_to_fail_is_part_of_it() -> None:
    verdict = judge(result({"train": "error: shape", **after("train", "not_run")}), [RELOAD, TRAIN])

    assert (verdict.status, verdict.expectation) == ("known-failure", TRAIN)


@pytest.mark.parametrize(("outcome", "status"), [("crash", "known-failure"), ("error", "new")])
def test_what_shares_the_process_of_a_known_crash_is_part_of_it(outcome: DeclaredOutcome, status: str) -> None:
    """An exception ends its stage and not the process: then a stage that is missing stays unexplained."""
    known = Expectation(cells=("*",), stage="generate", outcome=outcome, reason="router logits", since="always")
    stages = {"generate": f"{outcome}: x", "forward-paths": "not_run", "generate-merged": "not_run"}

    assert judge(result(stages), [known]).status == status


def test_stages_that_follow_a_known_failure_at_the_end_are_part_of_it() -> None:
    expected = Expectation(cells=("*",), stage="merge", outcome="error", reason="unreadable", since="always")
    verdict = judge(result({"merge": "error: x", **after("merge", "not_run")}), [expected])

    assert verdict.status == "known-failure"


def test_a_stage_that_could_not_be_reached_did_not_pass_unexpectedly() -> None:
    verdict = judge(result({"train": "error: shape", **after("train", "absent")}), [TRAIN, RELOAD])

    assert verdict.status == "known-failure"


def test_an_expectation_about_other_versions_excuses_nothing() -> None:
    older = CELL.model_copy(update={"stack": STACK.model_copy(update={"transformers": "5.5.0"})})

    assert judge(result({"reload-adapter": f"error: {TYPE_ERROR}"}, cell=older), [RELOAD]).status == "new"
    assert judge(result(cell=older), [RELOAD]).status == "ok"


def test_a_flaky_stage_may_fail_as_declared_or_pass() -> None:
    flaky = RELOAD.model_copy(update={"flaky": True})

    assert judge(result(), [flaky]).status == "ok"
    assert judge(result({"reload-adapter": f"error: {TYPE_ERROR}"}), [flaky]).status == "flaky"
    assert judge(result({"reload-adapter": "error: other"}), [flaky]).status == "new"


def test_a_certain_failure_decides_beside_a_flaky_one() -> None:
    flaky = TRAIN.model_copy(update={"stage": "compare", "flaky": True})
    stages = {"reload-adapter": f"error: {TYPE_ERROR}", "compare": "error: now and then"}

    assert judge(result(stages), [flaky, RELOAD]).expectation == RELOAD


def test_an_outcome_that_no_stage_accounts_for_is_a_new_failure() -> None:
    verdict = judge(result(outcome="timeout"), [])

    assert verdict.status == "new"
    assert "the outcome is timeout, but the stages say pass" in verdict.sentence


def test_a_result_without_stages_is_never_ok() -> None:
    empty = CellResult(cell=CELL, cell_id=CELL.id, outcome="pass")

    assert judge(empty, []).status == "new"


def test_a_given_interpreter_needs_no_environment() -> None:
    environment = {"resolve": "absent", "install": "absent"}
    unmanaged = CELL.model_copy(update={"unmanaged": True})

    assert judge(result(environment, cell=unmanaged), []).status == "ok"
    assert judge(result(environment), []).status == "new"


SCENES: tuple[dict[str, str], ...] = (
    {},
    {"load": "unsupported", **after("load", "not_run")},
    {"reload-adapter": "error"},
    {"train": "error", **after("train", "not_run")},
)
"""What is right, lacking or declared: from here one or two stages further is where a verdict can go wrong."""
LACKS = LACKING.model_copy(update={"match": None})


@given(
    scene=st.sampled_from(SCENES),
    changes=st.dictionaries(st.sampled_from(STAGES), st.sampled_from([*OUTCOMES, "not_run", "absent"]), max_size=2),
    expected=st.lists(st.sampled_from([RELOAD, TRAIN, TRAIN_ELSEWHERE, LACKS]), max_size=3),
)
@example(scene=SCENES[0], changes={}, expected=[])
@example(scene=SCENES[1], changes={}, expected=[RELOAD])
@example(scene=SCENES[1], changes={}, expected=[LACKS])
@example(scene=SCENES[2], changes={}, expected=[RELOAD])
@example(scene=SCENES[3], changes={}, expected=[RELOAD, TRAIN])
def test_green_means_that_nothing_failed_and_nothing_is_missing(
    scene: dict[str, str], changes: dict[StageName, str], expected: list[Expectation]
) -> None:
    kinds = {**dict.fromkeys(STAGES, "pass"), **scene, **changes}
    verdict = judge(result({name: f"{kind}: {TYPE_ERROR}" for name, kind in kinds.items()}), expected)

    results = set(kinds.values())
    if verdict.status == "ok":
        assert results <= {"pass", "unsupported", "not_run", "absent"}
        if {"not_run", "absent", "unsupported"} & results:
            assert kinds["load"] == "unsupported"
            assert LACKS in expected
    if verdict.status == "known-failure":
        assert verdict.expectation is not None
        assert verdict.expectation.outcome in results


# Reading and checking the file


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(body: str) -> Path:
        path = tmp_path / "expectations.toml"
        path.write_text(f"schema = 1\n[[expectation]]\n{body}", encoding="utf-8")
        return path

    return write


GOOD = """
when = "peft<0.20"
stage = "train"
outcome = "error"
reason = "why"
since = "peft 0.18.1"
"""


def test_no_file_means_no_expectation() -> None:
    assert load_expectations(None) == ()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('when = "peft<0.20"', 'when = "peft 0.20"', "expectation.0.when: 'peft 0.20' is not a condition"),
        ('when = "peft<0.20"', "", "say when it applies"),
        ('stage = "train"', 'stage = "trian"', "expectation.0.stage: unknown value 'trian'. Did you mean 'train'?"),
        ('outcome = "error"', 'outcome = "pass"', "expectation.0.outcome: unknown value 'pass'"),
        ('reason = "why"', "", "expectation.0: the key 'reason' is missing"),
        ('reason = "why"', 'reason = "why"\nmach = "x"', "unknown key 'mach'. Did you mean 'match'?"),
        ('reason = "why"', 'reason = "why"\nlink = "peft#1"', "expectation.0.link"),
    ],
)
def test_a_mistake_in_an_expectation_is_named(write: Callable[[str], Path], old: str, new: str, words: str) -> None:
    path = write(GOOD.replace(old, new))

    with pytest.raises(ConfigurationError) as caught:
        load_expectations(path)
    assert words in caught.value.message


def test_an_expectation_must_be_about_some_cell(
    config: MatrixConfig, catalogue: Catalogue, write: Callable[[str], Path]
) -> None:
    check_expectations(load_expectations(write(GOOD)), config, catalogue)
    nightly_only = load_expectations(write(GOOD + 'cells = ["beta/*+geometry=square*"]'))
    check_expectations(nightly_only, config, catalogue)
    on_a_gpu = load_expectations(write(GOOD + 'cells = ["beta/*+device=cuda*"]'))
    check_expectations(on_a_gpu, config, catalogue)

    for body in (GOOD.replace("<0.20", "<0.19"), GOOD + 'cells = ["gamma/*"]', GOOD + 'cells = ["*+device=tpu*"]'):
        with pytest.raises(ConfigurationError, match=r"expectation\.0: no cell of any profile"):
            check_expectations(load_expectations(write(body)), config, catalogue)


def test_what_only_a_run_finds_is_declared_as_such(
    config: MatrixConfig, catalogue: Catalogue, write: Callable[[str], Path]
) -> None:
    found = [*load_expectations(write(GOOD.replace("<0.20", "<0.1") + 'cells = ["mixtral/*"]\nfound = true'))]
    check_expectations(found, config, catalogue)
    assert found[0].applies(
        CELL.model_copy(update={"family": "mixtral", "stack": STACK.model_copy(update={"peft": "0.0.9"})})
    )

    undeclared = load_expectations(write(GOOD + 'cells = ["mixtral/*"]'))
    with pytest.raises(ConfigurationError, match="no cell of any profile") as caught:
        check_expectations(undeclared, config, catalogue)
    assert "found = true" in str(caught.value.remedy)

    misspelt = load_expectations(write(GOOD.replace("peft<", "pfet>=0, peft<") + "found = true"))
    with pytest.raises(UnknownNameError, match="Did you mean 'peft'"):
        check_expectations(misspelt, config, catalogue)


def test_an_exclusion_covers_what_is_added_later() -> None:
    but_attention = TRAIN.model_copy(update={"cells": ("qwen3_moe/*", "!*/lora-attention@*", "!*+seed=7")})

    def applies(**changes: object) -> bool:
        return but_attention.applies(CELL.model_copy(update=changes))

    assert applies()
    assert applies(recipe="lora-of-tomorrow")
    assert not applies(recipe="lora-attention")
    assert not applies(recipe="lora-of-tomorrow", seed=7)
    assert not applies(family="beta")


def test_exclusions_alone_leave_all_other_cells_of_the_versions() -> None:
    but_qwen = RELOAD.model_copy(update={"cells": ("!qwen3_moe/*",)})

    assert not but_qwen.applies(CELL)
    assert but_qwen.applies(CELL.model_copy(update={"family": "beta"}))
    older = STACK.model_copy(update={"peft": "0.18.1"})
    assert not but_qwen.applies(CELL.model_copy(update={"family": "beta", "stack": older}))


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ('["alpha/*", "gamma/*"]', "'gamma/*' matches no cell"),
        ('["alpha/*", "!*/qlora4@*"]', "'!*/qlora4@*' excludes none of the cells that it could"),
        ('["alpha/*", "!beta/*"]', "'!beta/*' excludes none of the cells that it could"),
        ('["!*+transformers=4*", "!beta/*"]', "'!*+transformers=4*' excludes none of the cells that it could"),
    ],
)
def test_a_glob_that_does_nothing_is_an_error(
    config: MatrixConfig, catalogue: Catalogue, write: Callable[[str], Path], cells: str, words: str
) -> None:
    check_expectations(load_expectations(write(GOOD + 'cells = ["*", "!beta/*"]')), config, catalogue)

    with pytest.raises(ConfigurationError, match=r"expectation\.0\.cells") as caught:
        check_expectations(load_expectations(write(GOOD + f"cells = {cells}")), config, catalogue)
    assert words in caught.value.message


def test_exclusions_do_not_say_when_it_applies(write: Callable[[str], Path]) -> None:
    body = "\n".join(line for line in GOOD.splitlines() if not line.startswith("when"))

    with pytest.raises(ConfigurationError, match="say when it applies"):
        load_expectations(write(body + '\ncells = ["!alpha/*"]'))


def test_an_expectation_must_be_about_pinned_packages(
    config: MatrixConfig, catalogue: Catalogue, write: Callable[[str], Path]
) -> None:
    expectations = load_expectations(write(GOOD.replace("peft<", "tranformers>=5, peft<")))

    with pytest.raises(UnknownNameError, match=r"expectation\.0\.when: .* Did you mean 'transformers'"):
        check_expectations(expectations, config, catalogue)


FAULTY = CELL.model_copy(update={"fault": "base-copied"})
ANY_FAILURE = tuple(
    Expectation(cells=("*",), stage=stage, outcome=outcome, reason="any", since="always")
    for stage in STAGES
    for outcome in FAILURES
)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_cell_with_a_planted_fault_is_never_green_whatever_is_declared(stage: StageName, outcome: Outcome) -> None:
    for later in ("pass", "not_run"):
        subject = result({stage: f"{outcome}: {TYPE_ERROR}", **after(stage, later)}, cell=FAULTY)
        verdict = judge(subject, [*ANY_FAILURE, RELOAD])

        assert (verdict.status, verdict.expectation) == ("planted", None)


def rejected(*names: str) -> tuple[Check, ...]:
    return tuple(Check(name=name, stage="compare", value=9, band="<= 1", passed=False) for name in names)


def test_a_planted_fault_that_the_gates_saw_is_said_to_be_noticed() -> None:
    names = ("applied", "kl", "logprob")
    seen = judge(result({"compare": "noop: all dropped"}, cell=FAULTY, checks=rejected(*names)), [])
    worse = {"compare": "noop: all dropped", "reload-adapter": "error: no such argument"}
    both = judge(result(worse, cell=FAULTY, checks=rejected(*names)), [])
    lost = judge(result({"load": "unsupported: no such family", **after("load", "not_run")}, cell=FAULTY), [])

    assert seen.sentence == (
        "base-copied was planted and noticed, as it must be: by compare/applied, compare/kl, compare/logprob"
    )
    assert both.sentence == f"{seen.sentence}; reload-adapter ended in error: no such argument"
    assert lost.sentence == (
        "base-copied was planted, and compare judged nothing: the cell ended in unsupported; "
        "load ended in unsupported: no such family"
    )


def test_a_planted_fault_that_a_check_let_through_is_said_to_be_missed() -> None:
    passed = judge(result(cell=FAULTY), [])
    half = judge(result({"compare": "fail: kl", "controls": "blind: x"}, cell=FAULTY, checks=rejected("kl")), [])

    assert passed.sentence.startswith(
        "base-copied was planted and NOT noticed: let through by compare/applied, compare/kl, compare/logprob"
    )
    assert half.sentence.startswith(
        "base-copied was planted and NOT noticed: let through by compare/applied, compare/logprob, "
        "noticed by compare/kl"
    )


@pytest.mark.parametrize("stage", ["reload-merged", "merge", "train", "compare"])
def test_unsupported_is_said_before_the_family_was_seen_or_not_at_all(stage: StageName) -> None:
    assert judge(result({stage: "unsupported: no such architecture"}), []).status == "unsupported"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("checks", []),
        ("merge", None),
        ("controls", []),
        ("adapter", None),
        ("adapter", AdapterInfo(num_experts=None, rank=3)),  # so that b-packing would be no control of it
        ("controls", [ControlResult.model_validate(control) for control in REJECTED if control["name"] != "b-packing"]),
        ("facts", dataclasses.replace(FACTS, fused_experts=False)),
        ("facts", dataclasses.replace(FACTS, kinds=())),
        ("facts", dataclasses.replace(FACTS, kinds=("attention",))),
        ("facts", dataclasses.replace(FACTS, quantized=True)),
        ("quantization", QuantizationInfo(kinds={})),
        ("cell", CELL.model_copy(update={"device": "cuda"})),
        ("controls", [ControlResult(name="base-copied", rejected=False)]),
        ("versions", {}),
        ("merge", MergeCounts(attempted=6, applied=5, dropped=1)),
        ("funnel", {"expert": Funnel(asked=4, attached=4, gradient=4, moved=3)}),
        ("funnel", {"dense": Funnel(asked=3, attached=0)}),
    ],
)
def test_a_result_that_says_pass_without_the_evidence_is_a_new_failure(field: str, value: object) -> None:
    verdict = judge(result().model_copy(update={field: value}), [])

    assert verdict.status == "new"
    assert verdict.sentence.startswith("the result says pass, but ")


@pytest.mark.parametrize(
    ("recipe", "facts", "words"),
    [
        ("qlora4", FACTS, "its recipe says that the base is quantised"),
        ("lora-padded", FACTS, "its recipe says that steps are no plain batches"),
        ("lora-resumed", FACTS, "its recipe says that training is resumed"),
        ("lora-per-expert", FACTS, "its recipe says that a pair for every expert is loaded"),
        ("lora-attention", FACTS, "its facts say that expert got a LoRA"),
        ("none-such", FACTS, "none-such is no recipe of this release"),
        ("lora-attention", dataclasses.replace(FACTS, kinds=("attention", "router")), "its facts say that router got"),
    ],
)
def test_facts_are_held_against_the_recipe(recipe: str, facts: CellFacts, words: str) -> None:
    """Whatever a worker says of its cell, qlora4 is quantised: else the checks of that would not be asked for."""
    cell = CELL.model_copy(update={"recipe": recipe})
    attention_only = {} if "expert" in facts.kinds else {"adapter": AdapterInfo(num_experts=None, rank=3)}
    whole = result({"reload-adapter": f"error: {TYPE_ERROR}"}, cell=cell)
    verdict = judge(whole.model_copy(update={"facts": facts, "cell_id": cell.id, **attention_only}), [RELOAD])

    assert verdict.status == "new"
    assert words in verdict.sentence


@pytest.mark.parametrize("attached", [True, False])
def test_of_what_a_user_writes_less_may_be_attached_where_the_check_says_so(attached: bool) -> None:
    cell = CELL.model_copy(update={"recipe": "module-names"})
    whole = result({} if attached else {"attach": "fail: expert 0/4"}, cell=cell)
    checks = [
        check.model_copy(update={"passed": attached}) if (check.name, check.stage) == ("attached", "attach") else check
        for check in whole.checks
    ]
    facts = dataclasses.replace(FACTS, kinds=("attention",))
    changed = {"facts": facts, "cell_id": cell.id, "checks": checks, "adapter": AdapterInfo(num_experts=None, rank=3)}
    declared = Expectation.model_validate(
        {"cells": ["*/module-names@*"], "stage": "attach", "outcome": "fail", "checks": ["attached"], "match": "expert",
         "reason": "no names", "since": "0"}
    )  # fmt: skip
    verdict = judge(whole.model_copy(update=changed), [] if attached else [declared])

    assert verdict.status == ("new" if attached else "known-failure")
    assert ("its recipe says that expert got a LoRA, and its facts do not" in verdict.sentence) == attached


@pytest.mark.parametrize(("name", "stage"), [pair for pair in ALL_CHECKS if pair[1] != "reload-adapter"])
def test_a_known_failure_excuses_no_missing_evidence_of_other_stages(name: str, stage: StageName) -> None:
    whole = result({"reload-adapter": f"error: {TYPE_ERROR}"})
    without = [check for check in whole.checks if (check.name, check.stage) != (name, stage)]
    verdict = judge(whole.model_copy(update={"checks": without}), [RELOAD])

    assert verdict.status == "new"
    assert verdict.sentence.startswith(f"{stage} ended in pass, but ")


def test_counts_that_do_not_add_up_and_a_borrowed_id_are_no_result() -> None:
    with pytest.raises(ValidationError, match="accounted for"):
        MergeCounts(attempted=56, applied=1)
    with pytest.raises(ValidationError, match="is not the id of its cell"):
        CellResult(cell=CELL, cell_id="alpha/other", outcome="pass")
