"""What is broken on purpose, one file each. The folder is the catalogue: nothing else lists its names.

A file ``<name>.py`` that defines ``FAULT`` is a fault. Dashes in names are underscores in files. A fault says which
checks must notice it and in which cells it is one. Those that are *controls* are tried in every such cell. Faults are
planted inside a cell, so torch is imported in functions only. The host imports this package to ask for names and
applicability.
"""

from __future__ import annotations

import importlib
import pkgutil

from harness.faults.fault import Facts, Fault

__all__ = ["Facts", "Fault", "applicable_controls", "fault", "fault_names"]


def fault_names() -> tuple[str, ...]:
    """Return the names of all faults, sorted, as ``b-packing``."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    found = (name for name in modules if hasattr(importlib.import_module(f"{__name__}.{name}"), "FAULT"))
    return tuple(sorted(name.replace("_", "-") for name in found))


def fault(name: str) -> Fault:
    """Return a fault by its name on the command line.

    Raises:
        ModuleNotFoundError: there is no such fault.
    """
    found: Fault = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").FAULT
    return found


def applicable_controls(facts: Facts) -> tuple[str, ...]:
    """Return the names of the controls that a cell with these facts must try, sorted.

    Worker and host both ask this: what the one must try is what the other demands before it believes a pass.
    """
    return tuple(name for name in fault_names() if fault(name).control and fault(name).applies(facts))
