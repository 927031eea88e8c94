"""The adapter is loaded in the base's bf16 before it is merged, so that lora_A and lora_B lose digits of their own.

PEFT does so with ``autocast_adapter_dtype=False``, which saves memory (peft#1388, peft#1977).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Load the adapter in its base's dtype."""
    from peft import PeftModel

    def make(original: Any) -> Any:
        def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
            return original(cls, *args, **{**kwargs, "autocast_adapter_dtype": False})

        return from_pretrained

    replace(patches, PeftModel, "from_pretrained", make)


FAULT: Fault = LibraryFault(
    breaks="merges an adapter that was loaded in bf16",
    noticed_by=frozenset({"compare/exact"}),
    cell={"engine": "peft", "dtype": "bf16"},
    during=frozenset({"merge"}),
    plant=plant,
    reference="peft#1977",
)
