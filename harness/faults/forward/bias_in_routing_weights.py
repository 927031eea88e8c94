"""The correction bias, which is for the choice of experts alone, gets into their weights too.

The scores are overwritten in place where they are corrected, and gathered afterwards.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling, sigmoid_weights


def plant(patches: ExitStack) -> None:
    """Weigh the chosen experts by their corrected scores."""
    family = modeling("deepseek_v3")

    def make(original: Any) -> Any:
        def forward(self: Any, hidden_states: Any) -> Any:
            logits, _, chosen = original(self, hidden_states)
            corrected = logits.sigmoid() + self.e_score_correction_bias
            return logits, sigmoid_weights(self, corrected, chosen), chosen

        return forward

    replace(patches, family.DeepseekV3TopkRouter, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="weighs experts by scores that have the correction bias in them",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "deepseek_v3"},
    plant=plant,
)
