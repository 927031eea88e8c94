"""The trained model cannot generate, though it trains and says what it should.

With router logits switched on, the MoE forwards of transformers up to 5.15 die so at the second token.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Have generation raise."""
    from transformers import GenerationMixin

    def make(_original: Any) -> Any:
        def generate(*_args: Any, **_kwargs: Any) -> Any:
            raise RuntimeError("The size of tensor a (2) must match the size of tensor b (0)")

        return generate

    replace(patches, GenerationMixin, "generate", make)


FAULT: Fault = LibraryFault(
    breaks="makes generation raise",
    noticed_by=frozenset({"generate"}),
    plant=plant,
    reference="https://github.com/huggingface/transformers/issues/42100",
)
