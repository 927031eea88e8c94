"""The output matrix is quantised too, which a list of exceptions is there to prevent."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

HEAD = "lm_head"


def plant(patches: ExitStack) -> None:
    """Take the head off what is not to be converted."""
    from transformers.quantizers.base import HfQuantizer

    def make(original: Any) -> Any:
        def get(*args: Any, **kwargs: Any) -> Any:
            kept = original(*args, **kwargs)
            if HEAD not in kept:
                raise AttributeError(f"{HEAD} is not on the list")
            return [name for name in kept if name != HEAD]

        return get

    replace(patches, HfQuantizer, "get_modules_to_not_convert", make)


FAULT: Fault = LibraryFault(
    breaks="quantises the output matrix",
    noticed_by=frozenset({"load/census"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
