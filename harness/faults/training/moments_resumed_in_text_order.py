"""A resumed optimizer gives its moments to parameters in the order of their names as text: layer 10 before layer 2.

States are numbered in a checkpoint. Whoever maps numbers to names must sort as the one who wrote them.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

LAYER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")


def exchange(named: list[tuple[str, Any]], state: Any) -> None:
    """Give the states of each kind of parameter to its layers in the other order."""
    kinds: dict[Any, list[tuple[int, Any]]] = {}
    for name, weight in named:
        found = LAYER.search(name)
        if found and weight in state:
            kinds.setdefault((LAYER.sub("*", name), tuple(weight.shape)), []).append((int(found[0]), weight))
    for layers in kinds.values():
        numbered = sorted(layers, key=lambda item: item[0])
        as_text = sorted(layers, key=lambda item: str(item[0]))
        states = [state[weight] for _, weight in numbered]
        for (_, weight), one in zip(as_text, states, strict=True):
            state[weight] = one


def plant(patches: ExitStack) -> None:
    """Exchange states once they are loaded."""
    from transformers import Trainer

    def make(original: Any) -> Any:
        def load(self: Any, checkpoint: Any) -> None:
            original(self, checkpoint)
            if checkpoint is not None:
                optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
                exchange(list(self.model.named_parameters()), optimizer.state)

        return load

    replace(patches, Trainer, "_load_optimizer_and_scheduler", make)


FAULT: Fault = LibraryFault(
    breaks="resumes with each layer's moments of another one",
    noticed_by=frozenset({"train/resumed"}),
    cell={"recipe": "lora-resumed", "geometry": "many"},
    plant=plant,
)
