"""Executors: what cells are run by.

The folder is the catalogue: a file that defines ``runner`` is what ``--executor`` offers.
"""

from __future__ import annotations

import importlib
import pkgutil

from harness.errors import UnknownNameError
from harness.execution.runner import MakeRunner


def executor_names() -> tuple[str, ...]:
    """Return the executors there are, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def executor(name: str) -> MakeRunner:
    """Return what makes the runner of an executor.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in executor_names():
        raise UnknownNameError("executor", name, executor_names(), where="--executor")
    make: MakeRunner = importlib.import_module(f"{__name__}.{name}").runner
    return make
