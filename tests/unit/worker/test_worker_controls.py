"""The central claim: a cell whose gates let a planted fault through says ``blind``, for each control and each gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_samples import FACTS, plain_cell
from control_cells import (
    ADAPTER,
    CHECKPOINT,
    I2,
    MATRICES,
    SPECS,
    E,
    H,
    R,
    logits_in,
    make_cell,
    request_in,
    samples_in,
)
from safetensors.torch import load_file

from harness.contract.stages import StageName
from harness.execution.decision import EndedStage, decide
from harness.faults import Facts, applicable_controls, fault, fault_names
from harness.faults.fault import LibraryFault, MergeFault, Site
from harness.faults.merged.b_packing import MisreadError
from harness.faults.patching import replace
from harness.planted import planted_fault
from harness.result import AdapterInfo, CellResult, Check, ControlResult, StageResult
from harness.worker import steps
from harness.worker.observation import Observation, StageStoppedError
from harness.worker.stages import compare, controls, planting
from harness.worker.stages.controls import run_controls
from harness.worker.stages.planting import FaultDoesNotApplyError, merge_as_asked, merge_with_fault
from harness.worker.stages.tensor_gate import inspect
from harness.worker.steps import Step, run_step

TENSOR_CHECKS = {"applied", "exact"}
LOADED = ("b-packing", "base-copied")
"""Controls that the functional gate must notice too."""
FUNCTIONAL_CHECKS = {"kl", "logprob", "samples"}
NAMES = applicable_controls(Facts.of(ADAPTER, dtype="float32", quantized=False))
"""The controls that the sample must try. A fault that is no control is planted only where it is asked for."""


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Observation:
    """A cell whose models are matrices; its gates are the real ones."""
    monkeypatch.setattr(controls, "load_model", lambda directory, _request: directory)
    monkeypatch.setattr(controls, "logits_of", lambda model, _request, _vocab: logits_in(model))
    monkeypatch.setattr(controls, "samples_of", lambda model, _request, _vocab: samples_in(model))
    made = make_cell(tmp_path)
    made.close("generate-merged", "completed")
    return made


def controls_stage(cell: Observation, **changes: Any) -> dict[str, Any]:
    """Run the stage and return the controls it recorded, by name."""
    with cell.stage("controls"):
        run_controls(cell, request_in(cell.path.parent, **changes), CHECKPOINT, vocab=12)
    return {control["name"]: control for control in cell.data["controls"]}


def stage_result(cell: Observation) -> StageResult:
    """Return what the host makes of the stage: what a worker measured is all that it is believed."""
    subject = plain_cell()
    result = CellResult(
        cell=subject,
        cell_id=subject.id,
        outcome="error",
        facts=FACTS,
        adapter=AdapterInfo.model_validate(cell.data["adapter"]),
        checks=[Check(**check) for check in cell.data["checks"]],
        controls=[ControlResult.model_validate(control) for control in cell.data.get("controls", [])],
    )
    ended = EndedStage(**cell.data["stages"]["controls"])
    return decide(result, {"compare": EndedStage(ended="completed"), "controls": ended}).stages["controls"]


def test_every_control_is_rejected_by_both_gates_when_they_work(cell: Observation) -> None:
    seen = controls_stage(cell)

    assert stage_result(cell).result == "pass"
    assert set(seen) == set(NAMES)
    assert all(control["rejected"] for control in seen.values())
    for name in LOADED:
        assert set(seen[name]["by"]) & TENSOR_CHECKS
        assert set(seen[name]["by"]) & FUNCTIONAL_CHECKS
    assert seen["one-delta-off"]["by"] == ["applied", "exact"]
    assert seen["untidy"]["by"] == ["untouched_bytes", "keys", "dtypes", "files"]


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_gate_that_lets_a_control_through_blinds_the_cell(
    cell: Observation, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The gate reads the right merge instead of the broken one, as a gate with a mistaken path would."""

    def misled(*args: Any, merged: Path, **more: Any) -> Any:
        broken = merged.name == f"control-{name}"
        return inspect(*args, merged=cell.path.parent / "merged" if broken else merged, **more)

    monkeypatch.setattr(compare, "inspect", misled)
    seen = controls_stage(cell)

    assert stage_result(cell).result == "blind"
    assert {control: entry["rejected"] for control, entry in seen.items()} == {other: other != name for other in NAMES}
    assert not set(seen[name]["by"]) & TENSOR_CHECKS
    if name in LOADED:
        assert set(seen[name]["by"]) >= {"kl", "logprob"}, "the other gate did notice, and that is not enough"
    first = min(fault(name).checks_of("compare"))
    assert f"let through by {first}" in str(stage_result(cell).reason)


@pytest.mark.parametrize("name", LOADED)
def test_a_functional_gate_that_lets_a_control_through_blinds_the_cell(
    cell: Observation, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The gate listens to the right merge instead of the broken one, as a reload with a mistaken path would."""

    def misled(directory: Path, _request: Any) -> Path:
        return cell.path.parent / "merged" if directory.name == f"control-{name}" else directory

    monkeypatch.setattr(controls, "load_model", misled)
    seen = controls_stage(cell)

    assert stage_result(cell).result == "blind"
    assert {control: entry["rejected"] for control, entry in seen.items()} == {other: other != name for other in NAMES}
    assert not set(seen[name]["by"]) & FUNCTIONAL_CHECKS
    assert "applied" in seen[name]["by"], "the other gate did notice, and that is not enough"
    assert "let through by kl, logprob" in str(stage_result(cell).reason)


@pytest.mark.parametrize(
    ("name", "check"), [(name, check) for name in NAMES for check in sorted(fault(name).checks_of("compare"))]
)
def test_with_any_of_its_checks_asleep_a_control_blinds_the_cell(
    cell: Observation, monkeypatch: pytest.MonkeyPatch, name: str, check: str
) -> None:
    awake = Observation.check

    def asleep(self: Observation, told: str, *args: Any, passed: bool, **more: Any) -> None:
        awake(self, told, *args, passed=passed or told == check, **more)

    monkeypatch.setattr(Observation, "check", asleep)
    seen = controls_stage(cell)

    assert not seen[name]["rejected"]
    assert stage_result(cell).result == "blind"
    assert f"let through by {check}" in str(stage_result(cell).reason)


def test_both_gates_must_notice_what_a_user_would_publish() -> None:
    assert set(NAMES) >= {"b-packing", "base-copied", "one-delta-off", "untidy"}
    for name in LOADED:
        assert fault(name).checks_of("compare") & TENSOR_CHECKS
        assert fault(name).checks_of("compare") & FUNCTIONAL_CHECKS
    assert all(fault(name).breaks for name in fault_names())


# Which controls a cell has


EVERYWHERE = ("base-copied", "one-delta-off", "untidy")


def facts(**changes: Any) -> Facts:
    return Facts.of({**ADAPTER, **changes}, dtype="float32", quantized=False)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ("b-packing", *EVERYWHERE)),
        ({"num_experts": 1}, EVERYWHERE),
        ({"rank": 1}, EVERYWHERE),
        ({"io_layout": None, "b_packing": None, "num_experts": None}, EVERYWHERE),
        ({"b_packing": "grouped_by_expert", "io_layout": "swapped"}, ("b-packing", *EVERYWHERE)),
    ],
)
def test_controls_are_those_faults_that_break_something(changes: dict[str, Any], names: tuple[str, ...]) -> None:
    assert applicable_controls(facts(**changes)) == names


def test_with_one_expert_only_the_other_controls_are_tried(cell: Observation) -> None:
    cell.data["adapter"]["num_experts"] = 1

    assert set(controls_stage(cell)) == set(EVERYWHERE)


# What is planted


def test_base_copied_is_the_base_to_the_byte(cell: Observation) -> None:
    work = cell.path.parent
    merge_with_fault("base-copied", request_in(work), CHECKPOINT, ADAPTER, out=work / "broken")

    assert (work / "broken" / "model.safetensors").read_bytes() == (work / "base" / "model.safetensors").read_bytes()
    assert sorted(path.name for path in work.glob("broken*")) == ["broken"], "the copy of the adapter is gone"


def test_b_packing_gives_every_expert_the_columns_of_the_other_reading(cell: Observation) -> None:
    """By unsloth-zoo's formula, which read lora_B as (out, E, r) up to 2026.9.5."""
    work = cell.path.parent
    saved = {
        name: tensor.double() for name, tensor in load_file(work / "adapter" / "adapter_model.safetensors").items()
    }
    a, b = (saved[f"p.experts.lora_{part}.weight"] for part in "AB")
    wrong = 2.0 * torch.einsum("oer,eri->eoi", b.reshape(I2, E, R), a.reshape(E, R, H))
    merge_with_fault("b-packing", request_in(work), CHECKPOINT, ADAPTER, out=work / "broken")
    base, right, broken = (load_file(work / name / "model.safetensors") for name in ("base", "merged", "broken"))

    for spec in SPECS:
        if spec.expert is None or spec.role is None:
            assert torch.equal(broken[spec.key], right[spec.key]), "what no packing concerns is merged rightly"
            continue
        rows = slice(0, 2) if spec.role == "gate_proj" else slice(2, 4)
        expected = (base[spec.key].double() + wrong[spec.expert, rows]).float()
        assert torch.equal(broken[spec.key], expected)
        assert not torch.equal(broken[spec.key], right[spec.key])


@pytest.mark.parametrize(
    ("changes", "named"), [({"io_layout": "swapped"}, "experts"), ({"b_packing": "grouped_by_expert"}, "experts")]
)
def test_a_reading_that_does_not_give_peft_s_delta_plants_nothing(
    cell: Observation, changes: dict[str, Any], named: str
) -> None:
    """A wrong reading of a wrong reading proves nothing. Swapped factors of these sizes do not even have the shape."""
    work = cell.path.parent

    with pytest.raises((MisreadError, RuntimeError), match=f"{named}|shape|size"):
        merge_with_fault("b-packing", request_in(work), CHECKPOINT, {**ADAPTER, **changes}, out=work / "broken")
    assert not (work / "broken").exists()


def test_a_fault_that_would_be_a_right_merge_is_refused(cell: Observation) -> None:
    with pytest.raises(FaultDoesNotApplyError, match="b-packing breaks nothing here"):
        merge_with_fault(
            "b-packing", request_in(cell.path.parent), CHECKPOINT, {**ADAPTER, "rank": 1}, out=cell.path.parent / "b"
        )


# A fault in the cell's own merge


def _engine(monkeypatch: pytest.MonkeyPatch, work: Path) -> list[Path]:
    """An engine that copies the right merge, claims everything, and remembers which adapter it was given."""
    given: list[Path] = []

    def merged(_request: Any, *, out: Path, base: Path | None = None, adapter: Path | None = None) -> dict[str, Any]:
        given.append(adapter or work / "adapter")
        planting.write_like(base or work / "merged", out, lambda _key, tensor: tensor)
        return {"engine_applied": 5}

    monkeypatch.setattr(planting, "merge_with_engine", merged)
    return given


def test_a_fault_of_the_merged_directory_takes_the_place_of_what_the_engine_left(
    cell: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = cell.path.parent
    _engine(monkeypatch, work)
    said = merge_as_asked(request_in(work, fault="base-copied"), CHECKPOINT, ADAPTER, out=work / "out")

    assert said == {"engine_applied": 5}, "the engine is sure of itself"
    assert (work / "out" / "model.safetensors").read_bytes() == (work / "base" / "model.safetensors").read_bytes()


def _mark(site: Site) -> None:
    (site.adapter / "planted").touch()


MARKED = MergeFault(breaks="leaves a mark", where="adapter", noticed_by=frozenset({"compare/applied"}), plant=_mark)
"""A fault of the adapter."""


def test_a_fault_of_the_adapter_is_merged_by_the_engine_and_the_adapter_itself_stays(
    cell: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = cell.path.parent
    given = _engine(monkeypatch, work)
    planted: list[bool] = []
    real = planting.merge_with_engine
    monkeypatch.setattr(planting, "fault", lambda _name: MARKED)
    monkeypatch.setattr(
        planting,
        "merge_with_engine",
        lambda request, **more: planted.append((more["adapter"] / "planted").exists()) or real(request, **more),
    )
    said = merge_as_asked(request_in(work, fault="doubled"), CHECKPOINT, ADAPTER, out=work / "out")

    assert said == {"engine_applied": 5}
    assert planted == [True]
    assert given != [work / "adapter"]
    assert not (work / "adapter" / "planted").exists()


def _patched(*during: StageName) -> LibraryFault:
    """A fault of code: JSON is read as ``patched``."""
    return LibraryFault(
        breaks="reads JSON as something else",
        noticed_by=frozenset({"compare/applied"}),
        plant=lambda patches: replace(patches, json, "loads", lambda _original: lambda _text: "patched"),
        during=frozenset(during),
    )


@pytest.mark.parametrize(
    ("during", "stages", "expected"),
    [
        ((), ("merge",), "patched"),
        (("merge",), ("merge",), "patched"),
        (("train",), ("load", "attach", "train", "save"), "patched"),
        (("train",), ("merge",), {}),
        ((), ("import",), {}),
    ],
)
def test_a_fault_of_code_is_there_while_its_stages_run_and_not_afterwards(
    cell: Observation,
    monkeypatch: pytest.MonkeyPatch,
    during: tuple[StageName, ...],
    stages: tuple[StageName, ...],
    expected: object,
) -> None:
    seen: list[object] = []
    step = Step(stages=stages, run=lambda *_args: seen.append(json.loads("{}")))
    monkeypatch.setattr(steps, "fault", lambda _name: _patched(*during))
    run_step(step, cell, request_in(cell.path.parent, fault="patched"), CHECKPOINT)

    assert seen == [expected]
    assert json.loads("{}") == {}


def test_code_that_a_release_lacks_cannot_be_broken_and_its_stage_says_so(
    cell: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = LibraryFault(
        breaks="patches what is not there",
        noticed_by=frozenset({"load/definition"}),
        plant=lambda patches: replace(patches, json, "no_such_function", lambda original: original),
    )
    monkeypatch.setattr(steps, "fault", lambda _name: absent)
    ran: list[object] = []
    step = Step(stages=("load", "attach"), run=lambda *args: ran.append(args))

    with pytest.raises(StageStoppedError):
        run_step(step, cell, request_in(cell.path.parent, fault="lm-head-tied"), CHECKPOINT)
    assert not ran
    load = cell.data["stages"]["load"]
    assert load["ended"] == "raised"
    assert "no_such_function" in load["reason"]
    subject = plain_cell(fault="lm-head-tied")
    stages = {"load": StageResult(result="error", reason=load["reason"])}
    became = planted_fault(CellResult(cell=subject, cell_id=subject.id, outcome="error", stages=stages))
    assert became is not None
    assert became.state == "unjudged", "an error of ours is not the one that a fault may have to end in"
    assert became.by == ()


def test_the_planted_merge_is_the_control_of_its_name_and_the_others_are_tried(cell: Observation) -> None:
    for name, passed in (("applied", False), ("kl", False), ("logprob", False), ("samples", True)):
        cell.check(name, "compare", 1.0, "any", passed=passed)
    cell.data["metrics"]["kl_trained_merged"] = 0.5
    seen = controls_stage(cell, fault="base-copied")

    assert set(seen) == set(NAMES)
    assert seen["base-copied"] == {
        "name": "base-copied", "rejected": True, "by": ["applied", "kl", "logprob"], "value": 0.5,
        "values": {"applied": 1.0, "kl": 1.0, "logprob": 1.0},
    }  # fmt: skip
    assert not (cell.path.parent / "control-base-copied.json").exists(), "it is not made a second time"


def test_a_planted_fault_that_nothing_noticed_blinds_the_cell(cell: Observation) -> None:
    for name in ("applied", "kl", "logprob", "samples"):
        cell.check(name, "compare", 1.0, "any", passed=True)
    seen = controls_stage(cell, fault="base-copied")

    assert not seen["base-copied"]["rejected"]
    assert stage_result(cell).result == "blind"


def test_a_control_that_cannot_be_made_is_an_error_and_not_a_pass(cell: Observation) -> None:
    (cell.path.parent / "pairs.json").unlink()

    with pytest.raises(StageStoppedError):
        controls_stage(cell)
    assert stage_result(cell).result == "error"


# What an engine edits


def test_an_input_that_the_engine_edited_fails_the_files_by_name(cell: Observation) -> None:
    request = request_in(cell.path.parent)
    says = {"edited_inputs": ["adapter/adapter_model.safetensors"], "engine_applied": 1}
    with cell.stage("compare"):
        compare.compare(cell, request, CHECKPOINT, says)
    files = next(check for check in cell.data["checks"] if check["name"] == "files")

    assert not files["passed"]
    assert files["detail"] == "adapter/adapter_model.safetensors (changed by the engine, and not its own)"
    assert cell.data["merge"]["attempted"] == len(MATRICES)
    assert cell.data["merge"]["engine_applied"] == 1
    assert "edited_inputs" not in cell.data["merge"], "the result has no such field"
