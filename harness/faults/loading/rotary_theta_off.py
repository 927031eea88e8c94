"""The base of the rotary frequencies is a hundredth off: a configuration that was written anew, or a default.

transformers 4.57.6 reads a ``rope_theta`` of 1e4 for 1e6 from what 5.23.0 wrote. This is far less.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling

OFF = 1.01


def plant(patches: ExitStack) -> None:
    """Compute the frequencies of a base that is a hundredth larger."""
    import torch

    def make(original: Any) -> Any:
        def compute(*args: Any, **kwargs: Any) -> Any:
            frequencies, factor = original(*args, **kwargs)
            return frequencies * OFF ** -(torch.arange(len(frequencies)) / len(frequencies)), factor

        return compute

    replace(patches, modeling("qwen3_moe").Qwen3MoeRotaryEmbedding, "compute_default_rope_parameters", make)


FAULT: Fault = LibraryFault(
    breaks="makes the base of the rotary frequencies a hundredth larger",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
