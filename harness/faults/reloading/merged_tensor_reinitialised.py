"""One tensor of the merged model is initialised anew after it was loaded: an ``_init_weights`` that runs too late."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading


def plant(patches: ExitStack) -> None:
    """Initialise one Linear of attention again."""

    def change(model: Any) -> None:
        import torch

        linears = {name: it for name, it in model.named_modules() if isinstance(it, torch.nn.Linear) and "attn" in name}
        torch.nn.init.normal_(linears[min(linears)].weight, std=0.02)

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="initialises one tensor of the merged model anew, and says nothing",
    noticed_by=frozenset({"compare/kl", "compare/logprob", "compare/definition"}),
    during=frozenset({"reload-merged"}),
    plant=plant,
)
