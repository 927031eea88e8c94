"""PEFT's wrapper of a fused parameter merges nothing and says that it has, by a ``merge`` that it inherits."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Note the adapter as merged and leave the parameter alone."""
    from peft.tuners.lora.layer import ParamWrapper

    def make(_original: Any) -> Any:
        def merge(self: Any, **_: Any) -> None:
            self.merged_adapters.extend(self.active_adapters)

        return merge

    replace(patches, ParamWrapper, "merge", make)


FAULT: Fault = LibraryFault(
    breaks="merges nothing into fused parameters",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    cell={"engine": "peft"},
    during=frozenset({"merge"}),
    plant=plant,
)
