"""What a worker left behind and how it ended, as a result: values worked out by hand."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
from contract_samples import FACTS, METRICS, REJECTED, complete_observation
from execution_helpers import cell
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.contract.checks import TABLE
from harness.contract.outcomes import Ended
from harness.contract.stages import STAGES, WORKER_STAGES, StageName
from harness.execution.finalise import StackRecord, finalise
from harness.execution.loading import load_result
from harness.execution.observation import parse_observation
from harness.execution.redact import Redactor
from harness.execution.store import ResultStore
from harness.execution.supervise import SupervisedExit
from harness.result import CellResult

VERSIONS = {"transformers": "5.5.0", "peft": "0.19.1", "trl": "0.25.1", "torch": "2.13.0+cpu"}
STACK = StackRecord(versions=VERSIONS, lock_sha256="b" * 64, python_version="3.11.7")
EXITED = SupervisedExit(ending="exited", code=0, seconds=3.25, peak_rss_mb=500.04)


def observed(**changes: Any) -> dict[str, Any]:
    """A complete observation of a cell that passed, with ``changes``."""
    return complete_observation() | changes


def finished(
    observation: object, ended: SupervisedExit = EXITED, log_tail: str = "", stack: StackRecord = STACK
) -> CellResult:
    content = observation if isinstance(observation, bytes) else json.dumps(observation).encode()
    return finalise(
        cell(),
        observation=parse_observation(content),
        ended=ended,
        stack=stack,
        redactor=Redactor({"work": Path("/scratch/cell-1"), "home": Path("/home/ann")}),
        log_tail=log_tail,
        log="cells/x.log",
        started="2026-11-21T01:02:03+00:00",
    )


def test_a_complete_pass() -> None:
    result = finished(observed(peak_rss_mb=612.5, versions={"peft": "0.19.1", "torch": "2.13.0"}))

    assert result.outcome == "pass"
    assert list(result.stages) == list(STAGES)
    assert result.peak_rss_mb == 612.5
    assert result.timings == {"cell": 3.25}
    assert result.versions == VERSIONS | {"torch": "2.13.0"}


def test_peak_memory_is_the_supervisors_where_the_worker_has_none() -> None:
    assert finished(observed()).peak_rss_mb == 500.0


@pytest.mark.parametrize(
    ("ended", "outcome"),
    [
        (SupervisedExit(ending="timeout", detail="too long"), "timeout"),
        (SupervisedExit(ending="oom", detail="too much"), "oom"),
        (SupervisedExit(ending="signalled", signal=6), "crash"),
        (SupervisedExit(ending="exited", code=1), "error"),
        (SupervisedExit(ending="exited", code=0), "error"),
    ],
)
def test_the_running_stage_gets_the_end_and_the_rest_is_not_run(ended: SupervisedExit, outcome: str) -> None:
    stages = {name: {"ended": "completed"} for name in WORKER_STAGES[:5]}  # up to and including train
    result = finished(observed(stages=stages, running="save", done=False), ended)

    assert (result.outcome, result.stage) == (outcome, "save")
    assert result.stages["train"].result == "pass"
    assert [stage.result for stage in result.stages.values()][8:] == ["not_run"] * 8
    assert result.stages["compare"].reason == f"needs save, which ended in {outcome}"


def test_a_stage_that_failed_leaves_those_that_do_not_need_it() -> None:
    """The row of transformers 5.6.2 with PEFT 0.19.1: the merge is right, the adapter cannot be loaded again."""
    observation = observed()
    observation["stages"]["reload-adapter"] = {"ended": "raised", "reason": "TypeError: distributed_operation"}
    result = finished(observation)

    assert (result.outcome, result.stage) == ("error", "reload-adapter")
    assert result.stages["compare"].result == "pass"


def test_the_worst_stage_decides_and_of_equals_the_first() -> None:
    observation = observed()
    observation["stages"]["reload-merged"] = {"ended": "raised", "reason": "second"}
    observation["stages"]["merge"] = {"ended": "raised", "reason": "first"}
    observation["stages"]["controls"] = {"ended": "unsupported", "reason": "third"}

    assert (finished(observation).stage, finished(observation).reason) == ("merge", "first")


@pytest.mark.parametrize(("check", "outcome"), [("kl", "fail"), ("signal", "blind"), ("applied", "fail")])
def test_a_failed_check_outranks_a_stage_that_claims_to_have_passed(check: str, outcome: str) -> None:
    failed = {"name": check, "stage": "compare", "value": 0.25, "band": "<= 0.1", "passed": False, "detail": "l.0"}
    result = finished(observed(checks=[*observed()["checks"], failed]))

    assert (result.outcome, result.stage) == (outcome, "compare")
    assert result.reason == f"{check} is 0.25, the band is <= 0.1: l.0"


@pytest.mark.parametrize(
    "changes",
    [
        {"merge": None},
        {"checks": []},
        {"merge": {"attempted": 0}},
        {"merge": {"attempted": 9, "applied": 8, "dropped": 1}},
        {"merge": {"attempted": 9, "applied": 8, "wrong": 1}},
        {"stages": {name: {"ended": "completed"} for name in WORKER_STAGES if name != "controls"}},
        {"stages": {}},
        {"controls": []},
        {"adapter": None},
        {"controls": [control for control in REJECTED if control["name"] != "b-packing"]},
        {"adapter": {"num_experts": None, "rank": 3}},
        {"facts": asdict(FACTS) | {"kinds": []}},
        {"facts": asdict(FACTS) | {"fused_experts": False}},
        {"facts": asdict(FACTS) | {"quantized": True}},
        {"quantization": {"kinds": {}}},
        {"adapter": {"rank": 3}},
    ],
)
def test_a_pass_without_the_evidence_for_it_is_an_error(changes: dict[str, object]) -> None:
    assert finished(observed(**changes)).outcome == "error"


def test_an_import_of_another_version_than_the_environments_is_an_error() -> None:
    result = finished(observed(versions={"peft": "0.21.2"}))

    assert (result.outcome, result.stage) == ("error", "import")
    assert result.reason == "imported peft 0.21.2, but the environment holds 0.19.1"


def test_a_cell_named_after_other_versions_than_were_imported_is_an_error() -> None:
    """Whatever the environment holds: a row that says 0.19.1 must have been measured on 0.19.1."""
    other = StackRecord(versions={"peft": "0.21.2"})
    result = finished(observed(versions={"peft": "0.21.2"}), stack=other)

    assert (result.outcome, result.stage) == ("error", "import")
    assert result.reason == "imported peft 0.21.2, but the cell is named after 0.19.1"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "is a list, not an object"),
        (b'{"running": "lunch"}', "running='lunch'"),
        (b'{"done": 1}', "done=1"),
        (b'{"outcome": "pass"}', "unknown fields: outcome"),
        (b'{"stages": 5, "done": true}', "does not fit"),
        (b'{"stages": {"build": {"ended": "great"}}, "done": true}', "build.ended"),
        (b'{"versions": null, "done": true}', "does not fit"),
        (b'{"checks": [{"name": "vibes"}], "done": true}', "checks.0"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"metrics": ' + b"[" * 40 + b"]" * 40 + b"}", "nested too deeply"),
        (b'{"threads": ' + b"1" * 5000 + b"}", "digits"),
        (b'{"peak_rss_mb": ' + b"1" * 400 + b"}", "digits"),
        (b'{"\\ud800": 1}', "unknown fields: ?"),
        (b'{"running": "resolve"}', "running='resolve'"),
        (
            b'{"checks": [{"name": "kl", "stage": "save", "value": 1, "band": "x", "passed": false}], "done": true}',
            "there is no check 'kl' in stage 'save'",
        ),
    ],
)
def test_an_observation_that_is_none_is_an_error_of_the_first_stage(content: bytes, words: str) -> None:
    result = finished(content, log_tail="the last line of /home/ann/x")

    assert (result.outcome, result.stage) == ("error", "import")
    assert result.reason is not None
    assert words in result.reason
    assert result.reason.endswith("the last line of <home>/x")


def test_no_observation_at_all() -> None:
    assert parse_observation(None).problem == "the worker wrote no observation"


def test_a_crash_after_everything_was_done_is_not_hidden() -> None:
    result = finished(observed(), SupervisedExit(ending="signalled", signal=11))

    assert (result.outcome, result.stage) == ("crash", "controls")
    assert result.reason == "after the last stage had finished: killed by SIGSEGV"


def test_numbers_that_json_does_not_have_are_left_out_and_told_by_their_check() -> None:
    failed = {"name": "kl", "stage": "compare", "value": float("nan"), "band": "<= 1e-09", "passed": False}
    loss = {"name": "loss", "stage": "train", "value": float("nan"), "band": "< 0", "passed": False}
    checks = [*(check for check in observed()["checks"] if check["name"] not in {"kl", "loss"}), failed, loss]
    training = {"loss": [2.5, float("nan")], "grad_norm": {"expert": float("inf"), "attention": 0.5}}
    metrics = METRICS | {"kl_trained_merged": float("nan"), "max_ulp": 0.5}
    result = finished(observed(checks=checks, training=training, metrics=metrics))

    assert result.stages["compare"].reason == "kl is nan, the band is <= 1e-09"
    assert result.reason == "loss is nan, the band is < 0"
    assert result.training is not None
    assert (result.training.loss, result.training.grad_norm) == ([2.5], {"attention": 0.5})
    assert (result.metrics.kl_trained_merged, result.metrics.max_ulp) == (None, 0.5)
    assert CellResult.model_validate_json(result.model_dump_json()) == result


def test_long_reasons_keep_beginning_and_end() -> None:
    reason = finished(b"x", log_tail="a" * 5000 + "end").reason

    assert reason is not None
    assert len(reason) < 2100
    assert reason.startswith("the worker's observation is not JSON")
    assert reason.endswith("end")


def test_texts_are_redacted_wherever_they_are() -> None:
    observation = observed()
    observation["stages"]["merge"] = {"ended": "raised", "reason": "wrote /scratch/cell-1/merged"}
    observation["checks"][0]["detail"] = "/home/ann/.cache"
    observation["merge"]["first_error"] = "/scratch/cell-1: no"
    text = finished(observation).model_dump_json()

    assert "/scratch" not in text
    assert "/home/ann" not in text
    assert "wrote <work>/merged" in text


def test_a_reason_with_half_a_surrogate_pair_can_be_written() -> None:
    """A path that is not UTF-8 has such in Python, and an exception quotes it."""
    observation = observed(platform="\ud800")
    observation["stages"]["train"] = {"ended": "raised", "reason": "FileNotFoundError: caf\udce9.txt"}
    result = finished(observation)

    assert (result.platform, result.reason) == ("?", "FileNotFoundError: caf?.txt")
    assert CellResult.model_validate_json(result.model_dump_json()) == result


def test_a_version_that_no_number_can_hold_is_another_version() -> None:
    result = finished(observed(versions={"torch": "1" * 5000}))

    assert (result.outcome, result.stage) == ("error", "import")


texts = st.text(st.characters(codec=None), max_size=8)  # lone surrogates among them
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def _nested(depth: int) -> bytes:
    return b'{"metrics": ' + b"[" * depth + b"]" * depth + b"}"


def _stray_check(name: str, stage: StageName) -> dict[str, object]:
    return {"checks": [{"name": name, "stage": stage, "value": 1, "band": "x", "passed": False}]}


endings = st.one_of(
    st.builds(SupervisedExit, ending=st.just("exited"), code=st.integers(0, 255)),
    st.builds(SupervisedExit, ending=st.just("signalled"), signal=st.integers(1, 64)),
    st.builds(SupervisedExit, ending=st.sampled_from(["timeout", "oom", "not-started"])),
)
stage_values = st.fixed_dictionaries({"ended": st.sampled_from(get_args(Ended))})
observations = st.one_of(
    st.binary(max_size=40),
    st.dictionaries(
        st.sampled_from(["stages", "checks", "merge", "versions", "running", "done", "timings", "python"]) | texts,
        json_values,
    ),
    st.builds(_nested, st.integers(1, 3000)),
    st.builds(_stray_check, st.sampled_from([check.name for check in TABLE]) | texts, st.sampled_from(STAGES)),
    st.fixed_dictionaries(
        {
            "stages": st.dictionaries(st.sampled_from(WORKER_STAGES), stage_values),
            "running": st.none() | st.sampled_from(WORKER_STAGES),
            "done": st.booleans(),
        }
    ),
)


@settings(deadline=None, max_examples=60)  # the machine may be busy
@given(observation=observations, ended=endings)
def test_whatever_a_worker_writes_there_is_a_result_and_none_of_it_passes(
    observation: object, ended: SupervisedExit
) -> None:
    """None of these has a merge and checks, so none may pass; each has every stage and can be written and read."""
    result = finished(observation, ended)
    with tempfile.TemporaryDirectory() as folder:
        assert load_result(ResultStore(Path(folder)).save(result)) == result

    assert result.outcome != "pass"
    assert list(result.stages) == list(STAGES)
    assert result.stage is not None
    assert result.stages[result.stage].result == result.outcome
    assert CellResult.model_validate_json(result.model_dump_json()) == result
