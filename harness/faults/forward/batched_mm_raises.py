"""transformers' batched forward of experts raises. Nothing takes it unless it is asked for, so training is fine.

transformers 5.8.1 has it so in backward, where an index that was saved for it is written to.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Have the batched products raise."""
    from transformers.integrations import moe

    def make(_original: Any) -> Any:
        def linear(*_args: Any, **_kwargs: Any) -> Any:
            raise RuntimeError("one of the variables needed for gradient computation has been modified")

        return linear

    replace(patches, moe, "_batched_linear", make)


FAULT: Fault = LibraryFault(
    breaks="makes the experts' batched products raise",
    noticed_by=frozenset({"forward-paths"}),
    plant=plant,
)
