"""The engine merges weights alone: biases that an adapter holds stay the base's, and are counted as merged."""

from __future__ import annotations

from contextlib import ExitStack

from harness.faults.breaking import left_as_the_base
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Leave every bias as the base's."""
    left_as_the_base(patches, lambda _plan, row: row.key.endswith(".bias"))


FAULT: Fault = LibraryFault(
    breaks="merges an adapter without its biases and counts them",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/claims"}),
    during=frozenset({"merge"}),
    cell={"family": "glm4_moe", "recipe": "lora-bias"},
    plant=plant,
)
