"""Queries and keys are normed after they are rotated, as other families do it: Hunyuan and some ports to other engines.

Rotation keeps a head's length. So only the weights of the norms fall on other numbers.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Leave the norms out where the layer calls them, and apply them to what the rotation returns."""
    import torch

    family = modeling("qwen3_moe")
    late: list[tuple[Any, Any]] = []

    def make_forward(original: Any) -> Any:
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            norms = self.q_norm, self.k_norm
            late.append(norms)
            self.q_norm, self.k_norm = torch.nn.Identity(), torch.nn.Identity()
            try:
                return original(self, *args, **kwargs)
            finally:
                self.q_norm, self.k_norm = norms
                late.pop()

        return forward

    def make_rotation(original: Any) -> Any:
        def apply_rotary_pos_emb(*args: Any, **kwargs: Any) -> Any:
            query, key = original(*args, **kwargs)
            of_query, of_key = late[-1]
            return of_query(query), of_key(key)

        return apply_rotary_pos_emb

    replace(patches, family.Qwen3MoeAttention, "forward", make_forward)
    replace(patches, family, "apply_rotary_pos_emb", make_rotation)


FAULT: Fault = LibraryFault(
    breaks="norms queries and keys after their rotation",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
