"""How many there are of something, in words."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return ``0 cells``, ``1 cell``, ``2 cells``.

    Args:
        count: how many.
        noun: the word for one.
        plural: the word for several, where it is not ``noun`` with an s.
    """
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"
