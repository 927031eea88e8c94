"""An adapter that is not trained stays frozen whichever are made active, tried on a model of two numbers."""

from __future__ import annotations

from pathlib import Path

import torch

from harness.worker.stages.attach import trainable_outside_lora
from harness.worker.stages.two_adapters import BEFORE, FROZEN, TRAINED, freeze, frozen_alone


class Adapted(torch.nn.Module):
    """A LoRA of two adapters under PEFT's names; as PEFT does, whatever is made active is made trainable."""

    def __init__(self) -> None:
        super().__init__()
        pairs = torch.nn.ModuleDict({name: torch.nn.Linear(1, 1, bias=False) for name in (FROZEN, TRAINED)})
        self.q_proj = torch.nn.ModuleDict({"lora_A": pairs})
        self.active: list[str] = []
        self.saved: dict[Path, list[str]] = {}

    @property
    def base_model(self) -> Adapted:
        """PEFT's tuner, which makes several adapters active."""
        return self

    def set_adapter(self, names: str | list[str]) -> None:
        """Make adapters active, and trainable."""
        self.active = [names] if isinstance(names, str) else names
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.split(".")[-2] in self.active)

    def save_pretrained(self, directory: Path, selected_adapters: list[str]) -> None:
        """Note which adapters are saved where."""
        self.saved[directory] = selected_adapters

    @property
    def trainable(self) -> set[str]:
        """The adapters that a trainer would train."""
        return {name.split(".")[-2] for name, parameter in self.named_parameters() if parameter.requires_grad}


def test_the_frozen_adapter_is_kept_as_it_was_and_is_not_trained(tmp_path: Path) -> None:
    model = Adapted()
    freeze(model, tmp_path)

    assert model.saved == {tmp_path / BEFORE: [FROZEN]}
    assert model.active == [FROZEN, TRAINED]
    assert model.trainable == {TRAINED}
    assert trainable_outside_lora(model) == []


def test_alone_it_is_not_trained_either_and_afterwards_both_are_active(tmp_path: Path) -> None:
    model = Adapted()
    freeze(model, tmp_path)
    with frozen_alone(model):
        assert model.active == [FROZEN]
        assert model.trainable == set()
    assert model.active == [FROZEN, TRAINED]
    assert model.trainable == {TRAINED}


def test_a_frozen_adapter_that_would_be_trained_is_named() -> None:
    model = Adapted()
    model.set_adapter([FROZEN, TRAINED])

    assert trainable_outside_lora(model) == [f"q_proj.lora_A.{FROZEN}.weight"]
