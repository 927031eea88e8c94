"""Of several adapters that are to be active, each layer takes the last that it has, as it did before it took lists.

The model goes on saying that all are active.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Make one adapter active in each layer."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    def make(original: Any) -> Any:
        def set_adapter(self: Any, adapter_names: Any, *args: Any, **kwargs: Any) -> Any:
            names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
            held = set(self._all_available_adapter_names())
            own = [name for name in names if name in held] or names
            return original(self, own[-1:], *args, **kwargs)

        return set_adapter

    replace(patches, BaseTunerLayer, "set_adapter", make)


FAULT: Fault = LibraryFault(
    breaks="lets one adapter work in each layer where two were asked for",
    noticed_by=frozenset({"train/unchanged", "save/definition"}),
    cell={"recipe": "lora-two-adapters"},
    plant=plant,
)
