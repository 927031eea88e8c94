"""Gate and up are fused in the other order when experts that lie apart on disk are loaded.

The operation that concatenates them goes by the order in which a converter lists their names.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Concatenate what a converter lists from its last to its first."""
    from transformers.core_model_loading import Concatenate

    def make(original: Any) -> Any:
        def convert(self: Any, input_dict: Any, source_patterns: Any, target_patterns: Any, **kwargs: Any) -> Any:
            return original(self, input_dict, source_patterns[::-1], target_patterns, **kwargs)

        return convert

    replace(patches, Concatenate, "convert", make)


FAULT: Fault = LibraryFault(
    breaks="fuses the experts' gate and up in the other order",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
