"""Linears in 4 bits multiply in bfloat16 where float32 was asked for, as bitsandbytes does on some CPUs."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Give every Linear in 4 bits another dtype to compute in."""
    import torch
    from bitsandbytes.nn import Linear4bit

    def make(original: Any) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self.compute_dtype = torch.bfloat16

        return init

    replace(patches, Linear4bit, "__init__", make)


FAULT: Fault = LibraryFault(
    breaks="multiplies in bfloat16 with Linears in 4 bits",
    noticed_by=frozenset({"load/definition"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
