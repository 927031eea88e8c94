"""Our own quantiser does not recognise the experts' parameters. It looks at what it has left behind."""

from __future__ import annotations

from contextlib import ExitStack

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Let no parameter be taken for fused experts."""
    from harness.experts.quantization import quantizer

    replace(patches, quantizer, "is_fused_experts", lambda _original: lambda _module, _leaf: False)


FAULT: Fault = LibraryFault(
    breaks="takes no parameter for fused experts when quantising",
    noticed_by=frozenset({"load"}),
    reference="unsloth-zoo#527",
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
