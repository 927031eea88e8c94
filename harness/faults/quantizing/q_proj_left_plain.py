"""One kind of Linear stays as it is: a name on a list of exceptions that ends like it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

KEPT = "q_proj"


def plant(patches: ExitStack) -> None:
    """Add a name to what is not to be converted."""
    from transformers.quantizers.base import HfQuantizer

    def make(original: Any) -> Any:
        def get(*args: Any, **kwargs: Any) -> Any:
            return [*original(*args, **kwargs), KEPT]

        return get

    replace(patches, HfQuantizer, "get_modules_to_not_convert", make)


FAULT: Fault = LibraryFault(
    breaks="leaves q_proj unquantised",
    noticed_by=frozenset({"load/census"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
