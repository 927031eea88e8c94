"""PEFT's wrapper of a square parameter merges the transposed delta, as one that takes experts for (in, out) would."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Transpose deltas that are square."""
    from peft.tuners.lora.layer import ParamWrapper

    def make(original: Any) -> Any:
        def get_delta_weight(self: Any, *args: Any, **kwargs: Any) -> Any:
            delta = original(self, *args, **kwargs)
            return delta.mT if delta.shape[-1] == delta.shape[-2] else delta

        return get_delta_weight

    replace(patches, ParamWrapper, "get_delta_weight", make)


FAULT: Fault = LibraryFault(
    breaks="merges transposed deltas into square parameters",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    cell={"engine": "peft", "geometry": "square-down"},
    during=frozenset({"merge"}),
    plant=plant,
    reference="peft#3165",
)
