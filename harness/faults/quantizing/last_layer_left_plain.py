"""The Linears of the last layer stay as they are: what is kept for the output matrix matches its neighbour too.

Experts are quantised by another way, so that layer is quantised in part. Nothing says so.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Add the last layer to what is not converted."""
    from transformers.quantizers.base import HfQuantizer

    def make(original: Any) -> Any:
        def get_modules_to_not_convert(model: Any, *args: Any, **kwargs: Any) -> Any:
            last = model.config.get_text_config().num_hidden_layers - 1
            return [*original(model, *args, **kwargs), rf".*layers\.{last}"]

        return get_modules_to_not_convert

    replace(patches, HfQuantizer, "get_modules_to_not_convert", make)


FAULT: Fault = LibraryFault(
    breaks="leaves the Linears of the last layer unquantised",
    noticed_by=frozenset({"load/census"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
