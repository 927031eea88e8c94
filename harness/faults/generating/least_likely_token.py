"""The least likely token is chosen: scores whose sign was turned, as losses and likelihoods differ by it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import scores_of_generation


def plant(patches: ExitStack) -> None:
    """Negate the scores of every token."""

    def negate(_tokens: Any, scores: Any) -> Any:
        return -scores

    scores_of_generation(patches, lambda: negate)


FAULT: Fault = LibraryFault(
    breaks="chooses the least likely token",
    noticed_by=frozenset({"generate/generation"}),
    plant=plant,
)
