"""up_proj and gate_proj of the merged model are joined in the wrong order when they are loaded."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Turn over what transformers makes of gate_proj and up_proj."""
    from transformers.core_model_loading import Concatenate

    def make(original: Any) -> Any:
        def convert(self: Any, *args: Any, **kwargs: Any) -> Any:
            joined = original(self, *args, **kwargs)
            return {name: tensor.roll(tensor.shape[self.dim] // 2, self.dim) for name, tensor in joined.items()}

        return convert

    replace(patches, Concatenate, "convert", make)


FAULT: Fault = LibraryFault(
    breaks="loads gate_proj and up_proj of the merged model in each other's place",
    noticed_by=frozenset({"compare/kl", "compare/logprob", "compare/definition"}),
    during=frozenset({"reload-merged"}),
    plant=plant,
)
