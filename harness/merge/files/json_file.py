"""Strict, bounded reading of small untrusted files: JSON with no repeated key, of limited size, from plain files only.

Everything the engine learns before it reads tensor data (headers, index, configurations) comes through here, so that a
hostile file can neither exhaust memory nor mean two things at once.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from harness.merge.errors import CorruptFileError, UnreadableInputError, UnsafePathError

MAX_DEPTH = 100
"""Levels of nesting. No published file has more than ten; what is read must be possible to write again."""
MAX_JSON_BYTES = 100_000_000
"""No published index or header is near this; the same limit as the safetensors format sets for its headers."""


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]  # set.add returns None, which is what makes this "first repeated"
        raise ValueError(f"the key {twice!r} appears twice in one object")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is beyond every number that can be held")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for one in level:
            inner += [
                item for item in (one.values() if isinstance(one, dict) else one) if isinstance(item, dict | list)
            ]
        if not inner:
            return
        level = inner
    raise RecursionError


def _check_text(text: str, value: Any) -> None:
    """Refuse halves of surrogate pairs, which JSON can spell and no file, name or terminal can hold."""
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()


def parse_object(data: bytes, what: str, *, constants: bool = False) -> dict[str, Any]:
    """Return the JSON object in ``data``.

    Args:
        data: UTF-8 text.
        what: what the data is, for the message.
        constants: accept ``NaN`` and ``Infinity``, which published config.json files do contain.

    Raises:
        CorruptFileError: not UTF-8, not JSON, nested too deeply, text that is not Unicode, a repeated key, or not an
            object.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_no_repeats,
            parse_constant=None if constants else _no_constant,
            parse_float=None if constants else _finite,
        )
        if isinstance(value, dict):
            _check_depth(value)
            _check_text(text, value)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CorruptFileError(f"{what} is not valid JSON: {reason}.") from None
    if not isinstance(value, dict):
        raise CorruptFileError(f"{what} should hold a JSON object, not a {type(value).__name__}.")
    return value


def plain_file_size(path: Path) -> int:
    """Return the size of a regular file in bytes.

    Raises:
        UnsafePathError: a directory, pipe, socket or device (opening one could block for ever).
        UnreadableInputError: the file cannot be looked at.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UnreadableInputError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnsafePathError(f"{path.name} is not a plain file.")
    return status.st_size


def read_object(path: Path, *, constants: bool = False) -> Mapping[str, Any]:
    """Return the JSON object in a file; see ``parse_object`` for what is refused."""
    size = plain_file_size(path)
    if size > MAX_JSON_BYTES:
        raise CorruptFileError(f"{path.name} has {size} bytes; more than {MAX_JSON_BYTES} is not read as JSON.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableInputError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    return parse_object(data, path.name, constants=constants)
