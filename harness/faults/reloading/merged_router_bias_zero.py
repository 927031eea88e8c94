"""The routers of the merged model have no correction bias: a buffer that the loader takes for one it makes itself."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import NothingBrokenError
from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading


def plant(patches: ExitStack) -> None:
    """Set every correction bias to zero."""

    def change(model: Any) -> None:
        found = [it for name, it in model.state_dict().items() if name.endswith("e_score_correction_bias")]
        if not found:
            raise NothingBrokenError("no router has a correction bias")
        for bias in found:
            bias.zero_()

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="loads the merged model without the routers' correction biases",
    noticed_by=frozenset({"compare/kl", "compare/logprob", "compare/definition"}),
    cell={"family": "glm4_moe"},
    during=frozenset({"reload-merged"}),
    plant=plant,
)
