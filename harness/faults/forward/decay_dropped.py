"""The state of the linear attention never decays: a kernel that is called without its gate."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Let the chunked rule forget nothing by itself."""
    import torch

    def make(original: Any) -> Any:
        def rule(*args: Any, g: Any, **kwargs: Any) -> Any:
            return original(*args, g=torch.zeros_like(g), **kwargs)

        return rule

    replace(patches, modeling("qwen3_5_moe"), "torch_chunk_gated_delta_rule", make)


FAULT: Fault = LibraryFault(
    breaks="drops the decay of the linear attention's state",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "qwen3_5_moe"},
    plant=plant,
)
