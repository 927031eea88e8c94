"""How code is broken for the time of a process: an attribute is replaced by what a function makes of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock


def replace(patches: ExitStack, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace ``owner.name`` by ``make(what it was)`` until the stack is closed.

    A classmethod is handed over as its plain function, whose first argument is the class, and put back as one.

    Args:
        patches: what a fault of code is given.
        owner: a module, a class or an object.
        name: an attribute that it has.
        make: makes the replacement.

    Raises:
        AttributeError: this release has no such attribute, so the fault cannot be planted.
    """
    found = inspect.getattr_static(owner, name)
    if isinstance(found, classmethod):
        patches.enter_context(mock.patch.object(owner, name, classmethod(make(found.__func__))))
    elif isinstance(found, staticmethod):
        patches.enter_context(mock.patch.object(owner, name, staticmethod(make(found.__func__))))
    else:
        patches.enter_context(mock.patch.object(owner, name, make(getattr(owner, name))))


def after_loading(patches: ExitStack, change: Callable[[Any], None]) -> None:
    """Change every model that ``from_pretrained`` of transformers returns."""
    from transformers import PreTrainedModel

    def make(original: Any) -> Any:
        def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
            loaded = original(cls, *args, **kwargs)
            change(loaded[0] if isinstance(loaded, tuple) else loaded)
            return loaded

        return from_pretrained

    replace(patches, PreTrainedModel, "from_pretrained", make)


def after_attaching(patches: ExitStack, change: Callable[[Any], None]) -> None:
    """Change every model that ``peft.get_peft_model`` returns."""
    import peft

    replace(patches, peft, "get_peft_model", lambda original: _then(original, change))


def after_reloading(patches: ExitStack, change: Callable[[Any], None]) -> None:
    """Change every model that ``PeftModel.from_pretrained`` returns: a base with a saved adapter on it."""
    from peft import PeftModel

    replace(patches, PeftModel, "from_pretrained", lambda original: _then(original, change))


def after_training_begins(patches: ExitStack, change: Callable[[Any], None]) -> None:
    """Change every trainer that ``trl.SFTTrainer`` makes, once it is made."""
    from trl import SFTTrainer

    def make(original: Any) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            change(self)

        return init

    replace(patches, SFTTrainer, "__init__", make)


def _then(original: Any, change: Callable[[Any], None]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        change(made)
        return made

    return call
