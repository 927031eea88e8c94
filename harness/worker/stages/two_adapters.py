"""An adapter that is active and not trained, under the one that is: attached, found unchanged, loaded again.

What it holds does not matter, as long as it moves the model. So it is drawn at random and never trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.worker.request import Request

TRAINED = "default"
"""PEFT's name of an adapter that was given none. ``save_pretrained`` puts it into the directory itself."""
FROZEN = "frozen"
"""The other's name, and that of its folder below."""
BEFORE = "adapter-before"
"""The directory, in the work directory, where adapters lie as they were before training."""


def freeze(peft_model: Any, work: Path) -> None:
    """Keep the frozen adapter on disk, make both active and the other one trainable."""
    peft_model.save_pretrained(work / BEFORE, selected_adapters=[FROZEN])
    peft_model.set_adapter(TRAINED)
    activate(peft_model, (FROZEN, TRAINED))


def activate(peft_model: Any, names: tuple[str, ...]) -> None:
    """Make adapters active. PEFT makes all that are active trainable, so the frozen one is frozen again."""
    peft_model.base_model.set_adapter(list(names))
    for name, parameter in peft_model.named_parameters():
        if f".{FROZEN}." in name:
            parameter.requires_grad_(requires_grad=False)


@contextmanager
def frozen_alone(peft_model: Any) -> Iterator[None]:
    """Let the frozen adapter be the only active one within the block."""
    activate(peft_model, (FROZEN,))
    try:
        yield
    finally:
        activate(peft_model, (FROZEN, TRAINED))


def load_adapters(base: Any, request: Request) -> Any:
    """Return the base with every saved adapter, all active, as a user would load them."""
    from peft import PeftModel

    if not (request.adapter / FROZEN).exists():
        return PeftModel.from_pretrained(base, request.adapter)
    model = PeftModel.from_pretrained(base, request.adapter / FROZEN, adapter_name=FROZEN)
    model.load_adapter(request.adapter, TRAINED)
    model.base_model.set_adapter([FROZEN, TRAINED])
    return model
