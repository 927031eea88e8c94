"""Interpreters of declared stacks, for what is measured on real releases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.envs import ensure_environment
from harness.matrix.catalogue import read_catalogue
from harness.matrix.config import load_config
from harness.matrix.locate import find_config


class NoSuchStackError(LookupError):
    """The matrix declares no stack of these releases."""


def declared_python(log: Callable[[str], None], transformers: str = "") -> Path:
    """Return the interpreter of the first declared stack whose transformers begins with the given digits, made now if
    it was not there.

    Raises:
        HarnessError: the environment cannot be made.
        NoSuchStackError: none is declared.
    """
    declared = load_config(find_config(None), read_catalogue()).declared
    stack = next((one for one in declared if one.transformers.startswith(transformers)), None)
    if stack is None:
        raise NoSuchStackError(f"no declared stack has transformers {transformers}")
    return ensure_environment(stack, log=log).python
