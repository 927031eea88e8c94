"""The load-balancing loss is computed of the last layer alone: a list of router outputs that is overwritten."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Leave the other layers' router outputs out."""
    from transformers.models.mixtral import modeling_mixtral

    def make(original: Any) -> Any:
        def balance(gate_logits: Any, *args: Any, **kwargs: Any) -> Any:
            return original(gate_logits[-1:], *args, **kwargs)

        return balance

    replace(patches, modeling_mixtral, "load_balancing_loss_func", make)


FAULT: Fault = LibraryFault(
    breaks="computes the load-balancing loss of the last layer alone",
    noticed_by=frozenset({"train/objective"}),
    plant=plant,
)
