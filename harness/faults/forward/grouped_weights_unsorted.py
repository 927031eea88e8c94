"""The grouped forward sorts rows by expert and leaves their routing weights in the order of the tokens.

Every row is weighted by another one's weight. Weights are alike, so the loss falls all the same.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest import mock

from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Undo in the grouped forward that weights are sorted with their rows."""
    import torch
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, ExpertsInterface

    original = ALL_EXPERTS_FUNCTIONS["grouped_mm"]

    def grouped(self: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
        _, order = torch.sort(top_k_index.reshape(-1))
        unsorted = top_k_weights.reshape(-1)[torch.argsort(order)].view_as(top_k_weights)
        return original(self, hidden_states, top_k_index, unsorted)

    known = ExpertsInterface._global_mapping  # noqa: SLF001 - where it is looked up
    patches.enter_context(mock.patch.dict(known, {"grouped_mm": grouped}))


FAULT: Fault = LibraryFault(
    breaks="leaves routing weights unsorted in the experts' grouped forward",
    noticed_by=frozenset({"load/definition", "forward-paths/forward_paths"}),
    plant=plant,
)
