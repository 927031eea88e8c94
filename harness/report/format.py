"""What a report format is: a file name, what it is for, and a pure function from rows to its text."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.report import formats
from harness.report.table import Row


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        file: the name of the file that it is written to.
        serves: who or what reads it and what is in it, for a table in the documentation.
        render: returns the text. It gets the rows in any order and, in words, when the report was made, or None. It
            raises ``ValueError`` when two rows are of the same cell.
    """

    file: str
    serves: str
    render: Callable[[Sequence[Row], str | None], str]


FIRST = "report.md"
"""Named first, because a person opens it first."""


def all_formats() -> tuple[Format, ...]:
    """Return every format, ``report.md`` first, the others by the name of their file."""
    modules = [
        importlib.import_module(f"{formats.__name__}.{found.name}") for found in pkgutil.iter_modules(formats.__path__)
    ]
    found: list[Format] = [module.FORMAT for module in modules]
    return tuple(sorted(found, key=lambda one: (one.file != FIRST, one.file)))
