"""Comparing releases of the libraries under test, with nothing but the standard library.

A worker imports only what is under test.
"""

from __future__ import annotations


def release(version: str) -> tuple[int, int]:
    """Return (major, minor) of a version such as ``5.5.0`` or ``0.19.2.dev0``."""
    first, second = version.split(".")[:2]
    return int(first), int(second)
