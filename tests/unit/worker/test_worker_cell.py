"""What comes after training: no stage of it stops another, whichever of them comes to nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.contract.stages import StageName
from harness.worker import cell
from harness.worker.observation import Observation
from harness.worker.stages.deltas import in_float64

AFTER: tuple[tuple[str, StageName], ...] = (
    ("_save", "save"), ("_generate", "generate"), ("_forward_paths", "forward-paths"),
)  # fmt: skip


@pytest.mark.parametrize("broken", [name for _, name in AFTER])
def test_a_stage_after_training_that_raises_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The adapter is saved before anything is tried."""
    order: list[str] = []

    def stage(name: StageName) -> Any:
        def run(observation: Observation, *_: Any) -> None:
            with observation.stage(name):
                order.append(name)
                if name == broken:
                    raise RuntimeError("no")

        return run

    monkeypatch.setattr(cell, "_load_attach_train", lambda *_: SimpleNamespace())
    for function, name in AFTER:
        monkeypatch.setattr(cell, function, stage(name))
    observation = Observation(tmp_path / "o.json")
    cell._train_and_use(observation, SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]

    assert order == ["save", "generate", "forward-paths"]
    ended = {name: entry["ended"] for name, entry in observation.data["stages"].items()}
    assert ended == {**dict.fromkeys(order, "completed"), broken: "raised"}


@pytest.mark.parametrize("raises", [False, True])
def test_a_model_that_was_in_float64_is_what_it_was(*, raises: bool) -> None:
    """Deltas are taken in float64 from the model that generates afterwards: its numbers, and its parameters, stay."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).to(torch.bfloat16)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    with contextlib.suppress(ZeroDivisionError), in_float64(model):
        assert {p.dtype for p in model.parameters()} == {torch.float64}
        model[0].weight.data += 1
        model[0].bias = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        1 / (not raises)

    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    after = model.state_dict()
    assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in before.items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert model[0].weight.grad is None
