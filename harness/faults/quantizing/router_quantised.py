"""Routers are in 4 bits, though they are to stay as they are: near choices go another way."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts

CODE = "nf4"


def plant(patches: ExitStack) -> None:
    """Round every router's weight to what 4 bits can mean."""
    from bitsandbytes import functional

    def change(model: Any) -> None:
        for router in parts(model, "top_k", "weight"):
            weight = router.weight
            coded = functional.quantize_4bit(weight.data.contiguous(), quant_type=CODE)
            weight.data = functional.dequantize_4bit(*coded).to(weight.dtype)

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="quantises routers",
    noticed_by=frozenset({"load/definition"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
