"""What is broken on purpose. The folders are the catalogue: nothing else lists its names.

A file ``<place>/<name>.py`` that defines ``FAULT`` is a fault. Its folder says where something goes wrong. Dashes in
names are underscores in files. A fault says which checks must notice it. Those that are *controls* are tried in every
cell that they break something in. Faults are planted inside a cell, so torch and the libraries under test are imported
in functions only. The host imports this package to ask for names and applicability.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping

from harness.faults.fault import Facts, Fault, LibraryFault, MergeFault

__all__ = ["Facts", "Fault", "LibraryFault", "MergeFault", "applicable_controls", "fault", "fault_names", "place_of"]


@functools.cache
def _modules() -> Mapping[str, str]:
    """Return name → module of every fault, by name.

    Raises:
        ValueError: two folders have a fault of one name.
    """
    found: dict[str, str] = {}
    for folder in pkgutil.iter_modules(__path__):
        if not folder.ispkg:
            continue
        package = importlib.import_module(f"{__name__}.{folder.name}")
        for module in pkgutil.iter_modules(package.__path__):
            name, path = module.name.replace("_", "-"), f"{package.__name__}.{module.name}"
            if hasattr(importlib.import_module(path), "FAULT"):
                if name in found:
                    raise ValueError(f"two faults have the name {name}: {found[name]} and {path}")
                found[name] = path
    return dict(sorted(found.items()))


def fault_names() -> tuple[str, ...]:
    """Return the names of all faults, sorted, as ``b-packing``."""
    return tuple(_modules())


@functools.cache
def fault(name: str) -> Fault:
    """Return a fault by its name on the command line.

    Raises:
        KeyError: there is no such fault.
    """
    found: Fault = importlib.import_module(_modules()[name]).FAULT
    return found


def place_of(name: str) -> str:
    """Return the folder of a fault, which says where something goes wrong, as ``training``."""
    return _modules()[name].split(".")[-2]


def applicable_controls(facts: Facts) -> tuple[str, ...]:
    """Return the names of the controls that a cell with these facts must try, sorted.

    Worker and host both ask this: what the one must try is what the other demands before it believes a pass.
    """
    found = ((name, fault(name)) for name in fault_names())
    return tuple(name for name, it in found if isinstance(it, MergeFault) and it.control and it.applies(facts))
