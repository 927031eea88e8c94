"""The residual around the experts is taken after their norm: one line stands above another.

Models of an older kind have it so, and it trains as well.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Add what attention returns to its input, and what the experts return to their normed input."""
    family = modeling("glm4_moe")

    def make(_original: Any) -> Any:
        def forward(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            attended, _ = self.self_attn(self.input_layernorm(hidden_states), *args, **kwargs)
            normed = self.post_attention_layernorm(hidden_states + attended)
            return normed + self.mlp(normed)

        return forward

    replace(patches, family.Glm4MoeDecoderLayer, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="takes the residual around experts after their norm",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "glm4_moe"},
    plant=plant,
)
