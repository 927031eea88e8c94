"""What is logged is the likelihood, what is trained on is another loss: each token weighed by its own probability.

That is dynamic fine-tuning (arXiv 2508.05629), an option of the trainer, on by a default that has changed. Tokens that
are likely already are learnt first, and the others hardly.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Give log-probabilities their own value, and the gradient of those that are weighed."""
    from trl.trainer import utils

    def make(original: Any) -> Any:
        def output(**fields: Any) -> Any:
            found = fields["log_probs"]
            weighed = found * found.exp().detach()
            return original(**{**fields, "log_probs": weighed + (found - weighed).detach()})

        return output

    replace(patches, utils, "FusedCausalLMOutput", make)


FAULT: Fault = LibraryFault(
    breaks="logs one loss and trains by another",
    noticed_by=frozenset({"train/gradient"}),
    plant=plant,
)
