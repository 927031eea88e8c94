"""The engine gives layers the adapter's pairs in the order of their names as text: 0, 1, 10, 11, 2.

Two lists of modules are walked side by side, and only one of them is sorted by number.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

LAYER = re.compile(r"(?<=\blayers\.)\d+")


def as_text(plan: Any) -> dict[int, int]:
    """Return for each pair of a plan the one that is at its place when layers are sorted as text."""
    groups: dict[Any, list[tuple[int, int]]] = {}
    for number, one in enumerate(plan.contributions):
        found = LAYER.search(one.module)
        if found and hasattr(one, "pair"):
            shapes = (one.pair.lora_A.shape, one.pair.lora_B.shape, one.scaling, one.num_experts)
            groups.setdefault((LAYER.sub("*", one.module), shapes), []).append((int(found[0]), number))
    taken: dict[int, int] = {}
    for layers in groups.values():
        by_text = sorted(layers, key=lambda item: str(item[0]))
        taken |= {number: other for (_, number), (_, other) in zip(sorted(layers), by_text, strict=True)}
    return taken


def plant(patches: ExitStack) -> None:
    """Read the factors of the pair that is at the same place in the other order."""
    from harness.merge.write.factored_deltas import FactoredDeltas

    def make(original: Any) -> Any:
        def read(self: Any, number: int) -> Any:
            return original(self, as_text(self._plan).get(number, number))

        return read

    replace(patches, FactoredDeltas, "_read", make)


FAULT: Fault = LibraryFault(
    breaks="merges into each layer the pairs of the one at its place when layers are sorted as text",
    noticed_by=frozenset({"compare/kl", "compare/logprob", "compare/applied"}),
    cell={"geometry": "many"},
    plant=plant,
)
