"""JSON that somebody else wrote, a worker that may have died over it or a person who edited it, read with suspicion.

Python's reader takes more than can be computed with or written again: numbers of a thousand digits, arrays a hundred
deep, half of a surrogate pair. Whatever of it would bring down a later reader is refused here, as a ``ValueError``.
"""

from __future__ import annotations

import json

DEPTH = 32
"""Objects and arrays inside one another; a result has six."""

INTEGER_LIMIT = 2**63
"""What every reader of JSON takes for an integer."""


def read_json(content: bytes) -> object:
    """Return the value of a JSON document whose numbers and nesting every later reader can take.

    Raises:
        ValueError: it is none; the message says what is wrong and quotes nothing of it.
    """
    try:
        value = json.loads(content)
        _check(value, DEPTH)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    return value


_TOO_DEEP = "nested too deeply to be read"


def _check(value: object, depth: int) -> None:
    """Raise ``ValueError`` for a number that is too large, and where ``depth`` does not suffice."""
    if isinstance(value, int) and not -INTEGER_LIMIT <= value < INTEGER_LIMIT:
        raise ValueError("a number with more digits than can be read")
    if not isinstance(value, dict | list):
        return
    if depth == 0:
        raise ValueError(_TOO_DEEP)
    for item in value.values() if isinstance(value, dict) else value:
        _check(item, depth - 1)


def encodable(text: str) -> str:
    """Return ``text`` with every lone surrogate replaced, which no encoding can write."""
    return text.encode("utf-8", "replace").decode() if any("\ud800" <= c <= "\udfff" for c in text) else text
