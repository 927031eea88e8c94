"""Attention has no norm on its queries; the checkpoint's weight for it is passed over.

Models of the generation before had none, and code that is made from theirs keeps it so.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Make attention without that norm."""
    import torch

    def make(original: Any) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            del self.q_norm  # an AttributeError where there is none
            self.q_norm = torch.nn.Identity()

        return init

    replace(patches, modeling("qwen3_moe").Qwen3MoeAttention, "__init__", make)


FAULT: Fault = LibraryFault(
    breaks="leaves out the norm of the queries",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
