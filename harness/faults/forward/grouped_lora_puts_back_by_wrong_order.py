"""Our grouped forward puts rows back by the order that sorted them, where its inverse is meant.

What experts made of one token goes to another. The library's own forward is right.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Route as before, and put rows back otherwise."""
    import torch

    from harness.experts.grouped import fused
    from harness.experts.grouped.groups import Groups

    def make(_original: Any) -> Any:
        def routed(hidden: Any, index: Any, weights: Any, *, num_experts: int, expert: Any) -> Any:
            tokens, top_k = index.shape
            ids, order = torch.sort(index.reshape(-1).clamp(max=num_experts - 1))
            ends = torch.searchsorted(ids, torch.arange(num_experts, device=ids.device), right=True, out_int32=True)
            out = expert(hidden[order // top_k], Groups(ends))
            kept = weights.masked_fill(index >= num_experts, 0).reshape(-1)
            weighted = out * kept[order].unsqueeze(-1)
            return weighted[order].view(tokens, top_k, -1).sum(dim=1).to(hidden.dtype)

        return routed

    replace(patches, fused, "routed", make)


FAULT: Fault = LibraryFault(
    breaks="gives tokens the experts' outputs of others in our grouped forward",
    noticed_by=frozenset({"forward-paths/forward_paths"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
