"""Executors: what cells are run by.

The folder is the catalogue: a file that defines ``runner`` is what ``--executor`` offers. One that runs cells elsewhere
than on this machine defines ``capacity`` too.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from harness.contract.cell_fields import Device
from harness.errors import UnknownNameError
from harness.execution.executors import local
from harness.execution.runner import Capacity, MakeRunner


def executor_names() -> tuple[str, ...]:
    """Return the executors there are, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


@dataclass(frozen=True, kw_only=True)
class Executor:
    """What runs cells.

    Attributes:
        make_runner: makes what runs the cells of a run.
        capacity: says how much there is for cells on a device.
    """

    make_runner: MakeRunner
    capacity: Callable[[Device], Capacity]


def executor(name: str) -> Executor:
    """Return an executor.

    Raises:
        UnknownNameError: there is none of that name.
        ConfigurationError: it needs a package that is not installed.
    """
    if name not in executor_names():
        raise UnknownNameError("executor", name, executor_names(), where="--executor")
    module = importlib.import_module(f"{__name__}.{name}")
    return Executor(make_runner=module.runner, capacity=getattr(module, "capacity", local.capacity))
