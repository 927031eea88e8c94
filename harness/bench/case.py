"""What a case is: steps that measure, each kept when it is finished, and a section of the report made from what they
found.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from harness.bench.lab import Lab

Tick = Callable[[], None]
"""Called when another unit of a step is done."""

Found = Mapping[str, Any]
"""What steps returned, by their names."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One measurement.

    Attributes:
        name: unique in a run.
        units: how often it ticks, for the progress bar.
        measure: does it and returns JSON values.
    """

    name: str
    units: int
    measure: Callable[[Lab, Tick], Any]


def case_names() -> tuple[str, ...]:
    """Return the cases there are, in the order in which they run and are reported: each a file in ``cases``."""
    from harness.bench import cases  # noqa: PLC0415 - the cases import this module

    modules = [load_case(found.name) for found in pkgutil.iter_modules(cases.__path__)]
    return tuple(module.__name__.rpartition(".")[2] for module in sorted(modules, key=lambda module: int(module.ORDER)))


def load_case(name: str) -> ModuleType:
    """Return the module of a case: ``ORDER``, ``steps(settings)``, ``section(found, settings)``."""
    return importlib.import_module(f"harness.bench.cases.{name}")
