"""A module gets a LoRA that was not asked for: an ending of a name that matches more than was meant."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import before_attaching


def plant(patches: ExitStack) -> None:
    """Add a Linear to the targets."""
    import torch

    def change(model: Any, config: Any) -> None:
        head, asked = model.get_output_embeddings(), set(config.target_modules or ())
        linears = {name for name, it in model.named_modules() if isinstance(it, torch.nn.Linear) and it is not head}
        config.target_modules = {*asked, min(linears - asked)}

    before_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="gives a module a LoRA that was not asked for",
    noticed_by=frozenset({"attach/attached"}),
    cell={"recipe": "lora-experts"},
    plant=plant,
)
