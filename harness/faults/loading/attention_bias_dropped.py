"""Attention is made without its biases; the checkpoint's are passed over as keys that nothing has."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Make queries, keys and values without a bias."""

    def make(original: Any) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            for linear in (self.q_proj, self.k_proj, self.v_proj):
                linear.bias = None

        return init

    replace(patches, modeling("glm4_moe").Glm4MoeAttention, "__init__", make)


FAULT: Fault = LibraryFault(
    breaks="drops the biases of attention",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "glm4_moe"},
    plant=plant,
)
