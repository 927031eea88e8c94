"""Training adds noise to the embeddings (NEFTune, arXiv 2310.05914), which nobody asked for: a default of a wrapper.

It is gone in evaluation.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_training_begins

STRENGTH = 5.0


def plant(patches: ExitStack) -> None:
    """Turn the trainer's own noise on."""

    def change(trainer: Any) -> None:
        trainer.neftune_noise_alpha = STRENGTH

    after_training_begins(patches, change)


FAULT: Fault = LibraryFault(
    breaks="adds noise to the embeddings while training",
    noticed_by=frozenset({"train/objective", "train/gradient"}),
    plant=plant,
)
