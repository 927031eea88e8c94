"""Queries and keys of the delta rule keep their length: a kernel that does not normalise, and is taken to do it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Have the chunked rule normalise nothing."""

    def make(original: Any) -> Any:
        def rule(*args: Any, use_qk_l2norm_in_kernel: bool, **kwargs: Any) -> Any:
            return original(*args, use_qk_l2norm_in_kernel=not use_qk_l2norm_in_kernel, **kwargs)

        return rule

    replace(patches, modeling("qwen3_5_moe"), "torch_chunk_gated_delta_rule", make)


FAULT: Fault = LibraryFault(
    breaks="leaves queries and keys of the delta rule at their length",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "qwen3_5_moe"},
    plant=plant,
)
