"""The LoRA has the library's default alpha, not the one asked for, in memory and in what is saved alike."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import before_attaching


def plant(patches: ExitStack) -> None:
    """Set the alpha that a configuration has by default."""
    from peft import LoraConfig

    default = LoraConfig().lora_alpha

    def change(_model: Any, config: Any) -> None:
        if config.lora_alpha == default:
            raise AttributeError("the default was asked for")
        config.lora_alpha = default

    before_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="gives the LoRA another alpha than was asked for",
    noticed_by=frozenset({"attach/attached"}),
    plant=plant,
)
