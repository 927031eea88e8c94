"""Tokens that were there are penalised, from a setting in a generation_config.json that greedy decoding keeps."""

from __future__ import annotations

from contextlib import ExitStack

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import scores_of_generation

PENALTY = 1.3


def plant(patches: ExitStack) -> None:
    """Penalise repetition in every generation."""
    from transformers import RepetitionPenaltyLogitsProcessor

    scores_of_generation(patches, lambda: RepetitionPenaltyLogitsProcessor(PENALTY))


FAULT: Fault = LibraryFault(
    breaks="penalises repetition",
    noticed_by=frozenset({"generate/generation"}),
    plant=plant,
)
