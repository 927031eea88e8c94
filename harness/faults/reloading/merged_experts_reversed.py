"""The experts of the merged model are stacked in reverse when they are loaded: the order of keys, not of numbers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Reverse each list of experts that transformers makes one tensor of."""
    from transformers.core_model_loading import MergeModulelist

    def make(original: Any) -> Any:
        def convert(self: Any, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            reversed_ = {pattern: tensors[::-1] for pattern, tensors in input_dict.items()}
            return original(self, reversed_, *args, **kwargs)

        return convert

    replace(patches, MergeModulelist, "convert", make)


FAULT: Fault = LibraryFault(
    breaks="loads the experts of the merged model in reverse",
    noticed_by=frozenset({"compare/kl", "compare/logprob", "compare/definition"}),
    during=frozenset({"reload-merged"}),
    plant=plant,
)
