"""Queries and output gates are told apart by halves of the whole projection, where each head has its own halves.

Who fuses two projections one after the other expects them so. Shapes are the same.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Order what q_proj returns so that the layer finds its first half as queries and its second as gates."""
    import torch

    family = modeling("qwen3_5_moe")

    def make(original: Any) -> Any:
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            def reorder(_module: Any, _inputs: Any, projected: Any) -> Any:
                queries, gates = projected.unflatten(-1, (2, -1, self.head_dim)).unbind(-3)
                return torch.cat((queries, gates), dim=-1).flatten(-2)

            hook = self.q_proj.register_forward_hook(reorder)
            try:
                return original(self, *args, **kwargs)
            finally:
                hook.remove()

        return forward

    replace(patches, family.Qwen3_5MoeAttention, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="splits queries from gates across heads and not within each",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "qwen3_5_moe"},
    plant=plant,
)
