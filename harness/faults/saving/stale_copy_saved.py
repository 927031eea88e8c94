"""The adapter is saved as it was one step before training ended: a copy that an asynchronous saver had made by then."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import saved_as
from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_training_begins


def plant(patches: ExitStack) -> None:
    """Keep the LoRA of the last but one step, and save that."""
    kept: dict[str, Any] = {}

    def change(trainer: Any) -> None:
        from transformers import TrainerCallback

        class Keeper(TrainerCallback):  # type: ignore[misc]  # the base class is untyped on the host
            def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
                if state.global_step == state.max_steps - 1:
                    for name, parameter in trainer.model.named_parameters():
                        kept[name.replace(".default.weight", ".weight")] = parameter.detach().clone()

        trainer.add_callback(Keeper())

    after_training_begins(patches, change)
    saved_as(patches, lambda _model, tensors: {key: kept[key] for key in tensors})


FAULT: Fault = LibraryFault(
    breaks="saves the adapter as it was before the last step",
    noticed_by=frozenset({"save/attached", "save/definition"}),
    during=frozenset({"save"}),
    plant=plant,
)
