"""Paths as callers give them: a string or a path object, one or several."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

AnyPath = str | PathLike[str]


def as_paths(given: AnyPath | Sequence[AnyPath]) -> list[Path]:
    """Return the paths of one or several; a string is one path, not the paths of its letters.

    Raises:
        TypeError: something is no path.
    """
    return [Path(one) for one in ([given] if isinstance(given, str | PathLike) else given)]
