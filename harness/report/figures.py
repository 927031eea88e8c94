"""How numbers are written in every format; pure.

Few digits, no clamping, and never a blank where a value is missing.
"""

from __future__ import annotations

import math

from harness.report.text import one_line

MISSING = "\N{EN DASH}"
"""Written where a value was not measured: an en dash, never 0 and never nothing."""

_PLAIN_FROM, _PLAIN_TO = 1e-3, 1e5
_MINUTE = 60.0
_TENTHS_BELOW = 10.0


def number(value: float | str | None, *, digits: int = 3) -> str:
    """Return a number with ``digits`` significant digits: ``0.23``, ``12``, ``1.2e-13``.

    Integers are given in full, text as it is.
    """
    if value is None:
        return MISSING
    if isinstance(value, str):
        return one_line(value) or MISSING
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if not _PLAIN_FROM <= abs(value) < _PLAIN_TO:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text else text


def kl(value: float | None) -> str:
    """Return a KL divergence in nats with two significant digits. It is not clamped: rounding can make it negative."""
    return number(value, digits=2)


def share(part: int | None, whole: int | None) -> str:
    """Return ``part/whole``, or a dash when either was not measured."""
    return MISSING if part is None or whole is None else f"{part}/{whole}"


def seconds(value: float | None) -> str:
    """Return a duration given in seconds: ``0.4 s``, ``42 s``, ``3 min 05 s``. What is no finite number is shown so."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    if value < _TENTHS_BELOW:
        return f"{value:.1f} s"
    if round(value) < _MINUTE:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), int(_MINUTE))
    return f"{minutes} min {rest:02d} s"
