"""Experts are in 8 bits where 4 were asked for: the mode of the load before, which a patch did not forget."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Pack all experts in 8 bits."""
    from harness.experts.quantization import conversion
    from harness.experts.quantization.scheme import Scheme

    def make(original: Any) -> Any:
        def pack(weights: Any, _scheme: Any, name: str) -> Any:
            return original(weights, Scheme("int8"), name)

        return pack

    replace(patches, conversion, "pack", make)


FAULT: Fault = LibraryFault(
    breaks="packs experts in another code than Linears",
    noticed_by=frozenset({"load/census"}),
    reference="axolotl#3439",
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
