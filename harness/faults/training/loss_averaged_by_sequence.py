"""The loss is the mean of the sequences' means, and not the mean of all tokens.

Tokens of short sequences weigh more. Where all have one length it is the same.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Weigh each token by how many there are in all, divided by sequences and by how many its own has."""
    from trl.trainer import utils

    def make(original: Any) -> Any:
        def output(**fields: Any) -> Any:
            mask = fields["label_mask"]
            lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
            weight = mask.sum() / (len(mask) * lengths)
            return original(**{**fields, "log_probs": fields["log_probs"] * weight})

        return output

    replace(patches, utils, "FusedCausalLMOutput", make)


FAULT: Fault = LibraryFault(
    breaks="averages the loss by sequences and not by tokens",
    noticed_by=frozenset({"train/objective", "train/gradient"}),
    cell={"recipe": "lora-padded"},
    plant=plant,
)
