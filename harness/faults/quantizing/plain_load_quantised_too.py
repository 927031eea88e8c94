"""A plain load is quantised because one before it was: what was asked for once is the default from then on."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

OPTIONS = ("quantization_config", "device_map")


def plant(patches: ExitStack) -> None:
    """Remember how a model was loaded, and load every other one so that says nothing of it."""
    from transformers import AutoModelForCausalLM

    remembered: dict[str, Any] = {}

    def make(original: Any) -> Any:
        def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
            remembered.update({name: kwargs[name] for name in OPTIONS if name in kwargs})
            return original(cls, *args, **{**remembered, **kwargs})

        return from_pretrained

    replace(patches, AutoModelForCausalLM, "from_pretrained", make)


FAULT: Fault = LibraryFault(
    breaks="quantises a plain load because one before it was",
    noticed_by=frozenset({"load/definition"}),
    during=frozenset({"load"}),
    cell={"recipe": "plain-after-qlora4", "geometry": "blocks"},
    plant=plant,
)
