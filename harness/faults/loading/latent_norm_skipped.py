"""Latent attention has no norm on its compressed keys and values; the checkpoint's weight for it is passed over.

A key of the checkpoint that no parameter has is no error: prediction layers lie there too.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Make latent attention without that norm."""
    import torch

    def make(original: Any) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            del self.kv_a_layernorm  # an AttributeError where there is none
            self.kv_a_layernorm = torch.nn.Identity()

        return init

    replace(patches, modeling("deepseek_v3").DeepseekV3Attention, "__init__", make)


FAULT: Fault = LibraryFault(
    breaks="leaves out the norm of the latent keys and values",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "deepseek_v3"},
    plant=plant,
)
