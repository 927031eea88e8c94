"""PEFT's wrappers of fused parameters are merged twice, because those of one module are nested.

They are met once by the walk over modules and once by the outer one's recursion.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Merge, forget it, and merge again."""
    from peft.tuners.lora.layer import ParamWrapper

    def make(original: Any) -> Any:
        def merge(self: Any, **options: Any) -> None:
            original(self, **options)
            self.merged_adapters.clear()
            original(self, **options)

        return merge

    replace(patches, ParamWrapper, "merge", make)


FAULT: Fault = LibraryFault(
    breaks="merges into fused parameters twice",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    cell={"engine": "peft"},
    during=frozenset({"merge"}),
    plant=plant,
)
