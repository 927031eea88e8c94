"""Each head's latent is expanded to value and key, and the value is taken for the first half.

Checkpoints of MLA were written both ways round. Nothing in the shape of ``kv_b_proj`` says which.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import modeling


def plant(patches: ExitStack) -> None:
    """Split what the latent is expanded to in the other order."""
    import torch

    def make(_original: Any) -> Any:
        def expand_kv(self: Any, kv_nope: Any, k_rot: Any) -> tuple[Any, Any]:
            batch, _, length, _ = kv_nope.shape
            wide = self.kv_b_proj(kv_nope).view(batch, length, -1, self.v_head_dim + self.qk_nope_head_dim)
            value, key = torch.split(wide.transpose(1, 2), [self.v_head_dim, self.qk_nope_head_dim], dim=-1)
            return torch.cat((key, k_rot.expand(-1, key.shape[1], -1, -1)), dim=-1), value.contiguous()

        return expand_kv

    replace(patches, modeling("deepseek_v3").DeepseekV3Attention, "expand_kv", make)


FAULT: Fault = LibraryFault(
    breaks="takes the first half of each head's expanded latent for its value",
    noticed_by=frozenset({"load/definition"}),
    cell={"family": "deepseek_v3"},
    plant=plant,
)
