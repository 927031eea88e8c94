"""How far one forward is from another, and what becomes of forwards that a release lacks or that raise."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch

from harness.worker.observation import Observation, StageStoppedError
from harness.worker.stages import forward_paths
from harness.worker.stages.forward_paths import OURS, PATHS, Seen, check_forward_paths, compare_paths


def seen(logits: float = 1.0, gradient: float = 1.0) -> Seen:
    return Seen(
        logits=torch.tensor([[0.0, logits], [2.0, 4.0]]),
        gradients={"zero": torch.zeros(2), "lora": torch.tensor([3.0, 4.0 * gradient])},
    )


def test_differences_are_relative_to_the_spread_and_to_the_norm() -> None:
    found = compare_paths(seen(), seen(logits=2.0, gradient=2.0))

    assert found["logits"] == pytest.approx(1 / float(seen().logits.std()))
    assert found["gradients"] == pytest.approx(4 / 5)
    assert compare_paths(seen(), seen()) == {"logits": 0.0, "gradients": 0.0}


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_infinitely_far(value: float, *, reference: bool) -> None:
    for part, broken in (("logits", seen(logits=value)), ("gradients", seen(gradient=value))):
        found = compare_paths(broken, seen()) if reference else compare_paths(seen(), broken)
        assert found[part] == math.inf


def test_a_gradient_where_there_should_be_none_is_infinitely_far() -> None:
    other = seen()
    other.gradients["zero"][0] = 1e-9

    assert compare_paths(seen(), other)["gradients"] == math.inf


class _Model:
    """A model with a LoRA of one number, whose experts take one of several ways, each of which says what it is told."""

    def __init__(self, says: dict[str, Any], usual: str = "grouped_mm") -> None:
        self.says = says
        self.lora = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.config = SimpleNamespace(_experts_implementation=usual, get_text_config=lambda: self.config)
        self.is_quantized = False

    def get_base_model(self) -> _Model:
        return self

    def set_experts_implementation(self, name: str) -> None:
        if self.says.get(name) == "refused":
            raise ValueError(f"{name} needs another torch")
        self.config._experts_implementation = name

    def train(self, mode: bool) -> None: ...

    def zero_grad(self, *, set_to_none: bool) -> None:
        assert set_to_none
        self.lora.grad = None

    def named_parameters(self) -> list[tuple[str, Any]]:
        return [("q_proj.lora_A.default.weight", self.lora)]

    def __call__(self, input_ids: Any) -> Any:
        name = self.config._experts_implementation
        if name in FORWARDS and self.says.get(name) != "ignored":
            FORWARDS[name]()
        told = self.says.get(name, 1.0)
        if isinstance(told, Exception):
            raise told
        factor = told if isinstance(told, float) else 1.0
        return SimpleNamespace(logits=(factor * self.lora).expand(*input_ids.shape, 3))


FORWARDS: dict[str, Any] = {}


class _Grouped:
    """What stands for ``enable_grouped_forward``: its blocks say whether ours ran."""

    def __init__(self, ran: int) -> None:
        self.blocks = [SimpleNamespace(name="layers.0.mlp.experts", reason="has_gate = None", grouped_calls=ran,
                                       library_calls=1 - ran)]  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: _Model, *, offered: tuple[str, ...] = PATHS, ours: int = 1
) -> Observation:
    """Run the stage on a model, and return what was recorded."""
    FORWARDS.clear()
    FORWARDS.update(dict.fromkeys(offered, lambda: None))
    moe = SimpleNamespace(ALL_EXPERTS_FUNCTIONS=FORWARDS)
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace())  # type: ignore[arg-type]  # stands for it
    monkeypatch.setitem(sys.modules, "transformers.integrations", SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "transformers.integrations.moe", moe)  # type: ignore[arg-type]
    monkeypatch.setattr(forward_paths, "enable_grouped_forward", lambda _model: _Grouped(ours))
    monkeypatch.setattr(forward_paths, "evaluation_prompts", lambda *_: torch.tensor([[0, 1, 2], [2, 1, 0]]))
    request = SimpleNamespace(
        seed=0, device="cpu", bands=SimpleNamespace(near_tie_epsilon=0.0, paths_max=1e-4), work=tmp_path
    )
    observation = Observation(tmp_path / "o.json")
    gaps = torch.ones(2, 3)
    with contextlib.suppress(StageStoppedError), observation.stage("forward-paths"):
        check_forward_paths(observation, model, request, gaps=gaps, vocab=3, on_experts=True)  # type: ignore[arg-type]
    assert model.config._experts_implementation == "grouped_mm", "as it was"
    return observation


def checks(observation: Observation) -> dict[str, tuple[bool, str | None]]:
    return {check["name"]: (check["passed"], check["detail"]) for check in observation.data["checks"]}


def test_all_paths_that_agree_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    observation = tried(tmp_path, monkeypatch, _Model({}))

    assert set(observation.data["forward_paths"]) == {*PATHS, OURS}
    assert observation.data["not_possible"] == {}
    assert checks(observation) == {"forward_paths": (True, None), "control:forward_paths": (True, None)}


def test_a_path_that_is_off_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checks(tried(tmp_path, monkeypatch, _Model({"batched_mm": 1.5})))["forward_paths"]

    assert found == (False, "batched_mm differs from eager in its logits")


def test_ours_that_is_not_possible_is_recorded_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observation = tried(tmp_path, monkeypatch, _Model({}), ours=0)

    assert observation.data["not_possible"] == {OURS: "layers.0.mlp.experts: has_gate = None"}
    assert set(observation.data["forward_paths"]) == set(PATHS), "what ran in its place is the library's own"
    assert checks(observation)["forward_paths"][0]


def test_a_path_that_is_not_offered_is_recorded_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observation = tried(tmp_path, monkeypatch, _Model({"batched_mm": "refused"}), offered=PATHS[:1])

    assert observation.data["not_possible"] == {
        "batched_mm": "ValueError: batched_mm needs another torch",
        "grouped_mm": "this release of transformers does not offer it",
    }
    assert set(observation.data["forward_paths"]) == {OURS}
    assert checks(observation)["forward_paths"][0]


def test_a_path_that_is_chosen_and_not_taken_fails_for_that_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = checks(tried(tmp_path, monkeypatch, _Model({"batched_mm": "ignored"})))["forward_paths"]

    assert found == (False, "batched_mm was chosen and not taken")


def test_a_path_that_raises_is_told_after_the_others_were_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _Model({"batched_mm": RuntimeError("modified by an inplace operation")})
    observation = tried(tmp_path, monkeypatch, model)
    stage = observation.data["stages"]["forward-paths"]

    assert set(observation.data["forward_paths"]) == {"grouped_mm", OURS}
    assert checks(observation)["forward_paths"][0]
    assert stage["ended"] == "raised"
    assert stage["reason"].startswith(
        "PathFailedError: the experts forward batched_mm, which is taken only where it is asked for, raised; "
        "grouped_mm, grouped_forward ran, because of RuntimeError: modified by an inplace operation ["
    )


def test_the_path_that_the_stack_takes_by_itself_is_said_to_be_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observation = tried(tmp_path, monkeypatch, _Model({"grouped_mm": RuntimeError("no")}))

    assert (
        "grouped_mm, which is what this stack takes by itself, raised"
        in (observation.data["stages"]["forward-paths"]["reason"])
    )
