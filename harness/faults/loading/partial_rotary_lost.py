"""Whole heads are rotated where the configuration says half of each: a key that was renamed, and has a default."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Compute rotary frequencies for whole heads."""
    from types import SimpleNamespace

    def make(original: Any) -> Any:
        def compute(config: Any, *args: Any, **kwargs: Any) -> Any:
            parameters = {**config.rope_parameters, "partial_rotary_factor": 1.0}
            return original(SimpleNamespace(**{**vars(config), "rope_parameters": parameters}), *args, **kwargs)

        return compute

    replace(patches, modeling("glm4_moe").Glm4MoeRotaryEmbedding, "compute_default_rope_parameters", make)


FAULT: Fault = LibraryFault(
    breaks="rotates whole heads where half of each is meant",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "glm4_moe"},
    plant=plant,
)
