"""One token of each sample is the second best, where a rule has taken the best one out."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import scores_of_generation

AT = 3


def plant(patches: ExitStack) -> None:
    """Take the best token of one step out."""

    def processor() -> Any:
        scored = 0

        def take_out(_tokens: Any, scores: Any) -> Any:
            nonlocal scored
            scored += 1
            best = scores.argmax(-1, keepdim=True)
            return scores.scatter(-1, best, float("-inf")) if scored == AT else scores

        return take_out

    scores_of_generation(patches, processor)


FAULT: Fault = LibraryFault(
    breaks="chooses the second best token once",
    noticed_by=frozenset({"generate/generation"}),
    plant=plant,
)
