"""Groups of experts are ranked by their best expert, as DeepSeek V2 does, and not by the sum of their best two.

Most tokens choose the same groups by either rule.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling, sigmoid_weights


def plant(patches: ExitStack) -> None:
    """Choose groups by their largest score, then experts within them as before."""
    import torch

    family = modeling("deepseek_v3")

    def make(original: Any) -> Any:
        def forward(self: Any, hidden_states: Any) -> Any:
            logits, _, _ = original(self, hidden_states)
            scores = logits.sigmoid()
            grouped = (scores + self.e_score_correction_bias).view(len(scores), self.num_group, -1)
            kept = grouped.amax(dim=-1).topk(self.topk_group, dim=-1)[1]
            mask = torch.ones(grouped.shape[:2], dtype=torch.bool, device=grouped.device).scatter_(1, kept, value=False)
            masked = grouped.masked_fill(mask.unsqueeze(-1), float("-inf")).flatten(1)
            chosen = masked.topk(self.top_k, dim=-1, sorted=False)[1]
            return logits, sigmoid_weights(self, scores, chosen), chosen

        return forward

    replace(patches, family.DeepseekV3TopkRouter, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="ranks groups of experts by their best expert alone",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "deepseek_v3"},
    plant=plant,
)
