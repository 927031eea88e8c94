"""A measured value and its band, both as a person reads them: whether the one lies in the other.

A worker says whether a check passed. What it says must agree with the numbers beside it. A band begins with a
comparison, ``<= 1e-09`` or ``== 12/12``. Words may follow.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping

_BAND = re.compile(r"(<=|>=|==|<) (?:(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)|(\d+/\d+))(?=[ ,]|$)")
_ALL = re.compile(r"([1-9]\d*)/\1")
_PRINTED = 1e-5
"""A bound is printed with six digits: a value this close to it, relative to it, may lie on either side."""
_COMPARED: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
}


def lies_within(value: float | str | None, band: str) -> bool | None:
    """Say whether a value lies in its band; None where the band begins with no comparison."""
    found = _BAND.match(band)
    if found is None:
        return None
    comparison, number, share = found.groups()
    if share is not None:
        return value == share and is_all(value)
    if isinstance(value, str | None):
        return False
    bound = float(number)
    near = comparison != "==" and abs(value - bound) <= _PRINTED * abs(bound)
    return near or _COMPARED[comparison](value, bound)


def failed_in_words(name: str, value: float | str | None, band: str, detail: str | None) -> str:
    """Return a failed check in a line: ``kl is 0.31, the band is <= 1e-09: …``.

    A check can fail for another reason than its band. Then that reason is what is said, and never that a value which
    lies within its band does not.
    """
    shown = f"{value:.3g}" if isinstance(value, float) else value
    if lies_within(value, band) is True:
        reason = detail or "it failed, and does not say why"
        return f"{name}: {reason} (its value, {shown}, is within its band, {band})"
    text = f"{name} is {shown}, the band is {band}"
    return f"{text}: {detail}" if detail else text


def limit_of(band: str) -> str | None:
    """Return the comparison that a band begins with, as ``<= 1e-09``; None where it is none, or asks for one value."""
    found = _BAND.match(band)
    return None if found is None or found[1] == "==" else f"{found[1]} {found[2]}"


def is_nearer(value: float, other: float, limit: str) -> bool:
    """Say whether a value is nearer than another to what a limit asks for, or further within.

    Args:
        value: measured.
        other: measured.
        limit: as ``limit_of`` returns it.
    """
    return value > other if limit.startswith(">=") else value < other


def is_all(value: float | str | None) -> bool:
    """Say whether a value is ``n/n`` with at least one."""
    return isinstance(value, str) and _ALL.fullmatch(value) is not None
