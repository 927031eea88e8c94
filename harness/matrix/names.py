"""Globs over names that are known beforehand, where one that matches nothing is a mistake."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from harness.errors import ConfigurationError, UnknownNameError, nearest


def match_names(globs: Sequence[str], known: Sequence[str], what: str, where: str) -> tuple[str, ...]:
    """Return the ``known`` names that any glob matches, in the order of ``known``.

    Args:
        globs: ``fnmatch`` patterns; a plain name is a pattern that matches itself.
        known: every name there is, in the order wanted.
        what: what kind of thing the names are, as ``"recipe"``.
        where: the key path of ``globs``, as ``"profiles.default.cells.2.recipes"``, or the option that gave them, as
            ``"--stack"``.

    Raises:
        UnknownNameError: a plain name is unknown.
        ConfigurationError: a pattern matches nothing.
    """
    chosen: set[str] = set()
    for index, glob in enumerate(globs):
        matching = fnmatch.filter(known, glob)
        place = where if where.startswith("--") else f"{where}.{index}"
        if not matching and any(character in glob for character in "*?["):
            near = nearest(glob.strip("*"), known)
            hint = f" The nearest is {near!r}." if near else ""
            raise ConfigurationError(
                f"{place}: {glob!r} matches no {what}.{hint}", remedy=f"Known: {', '.join(known)}."
            )
        if not matching:
            raise UnknownNameError(what, glob, known, where=place)
        chosen.update(matching)
    return tuple(name for name in known if name in chosen)
