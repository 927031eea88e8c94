"""The second load in a process is quantised as the first one was: a configuration that is kept for good."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Hand out the first configuration whenever one is made."""
    from harness.experts.quantization import quantizer

    kept: list[Any] = []

    def make(original: Any) -> Any:
        def config(*args: Any, **kwargs: Any) -> Any:
            kept.append(original(*args, **kwargs))
            return kept[0]

        return config

    replace(patches, quantizer, "ExpertQuantizationConfig", make)


FAULT: Fault = LibraryFault(
    breaks="quantises a second load as the first one",
    noticed_by=frozenset({"load/census"}),
    cell={"recipe": "qlora8-after-qlora4", "geometry": "blocks"},
    plant=plant,
)
