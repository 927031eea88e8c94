"""``assistant_only_loss`` is on and has no effect: the collator takes tokens for labels, not the labels it is given.

All of a conversation is trained on, prompts and templates too. These are easy, so the loss looks better.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Drop the labels of examples before they are collated."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    def make(original: Any) -> Any:
        def torch_call(self: Any, examples: Any) -> Any:
            plain = [{name: value for name, value in example.items() if name != "labels"} for example in examples]
            return original(self, plain)

        return torch_call

    replace(patches, DataCollatorForLanguageModeling, "torch_call", make)


FAULT: Fault = LibraryFault(
    breaks="trains on all of a conversation where answers were asked for",
    noticed_by=frozenset({"train/steps", "train/objective"}),
    cell={"recipe": "lora-chat"},
    plant=plant,
)
