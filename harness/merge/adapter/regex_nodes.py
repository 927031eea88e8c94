"""What single nodes of a parsed regular expression say: which characters they accept, and which cannot be followed.

Nodes are those of Python's own parser: (code, value), nested as the pattern is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from re import _constants as op  # type: ignore[attr-defined]  # the parser is not public, and has kept its form from 3.11 on
from typing import Any

CHARACTERS = frozenset({op.ANY, op.IN, op.LITERAL, op.NOT_LITERAL})
"""Nodes that stand for one character."""
NESTED = frozenset({op.MAX_REPEAT, op.MIN_REPEAT, op.SUBPATTERN, op.BRANCH, op.ASSERT, op.ASSERT_NOT})
"""Nodes that hold others."""
DIGITS = "0123456789"
WIDE = 1000
"""How many characters one beyond Latin-1 counts as in a set: Python makes a map of all of Unicode's first plane."""

Node = tuple[Any, Any]


def check_followable(nodes: Iterable[Node]) -> None:
    """Refuse what sets of positions cannot follow, however deep in the pattern it is.

    Raises:
        NotImplementedError: names the construct.
    """
    for code, value in nodes:
        if code not in CHARACTERS and code is not op.AT and code not in NESTED:
            raise NotImplementedError(str(code).lower().replace("_", " "))
        for inner in _inside(code, value):
            check_followable(inner)


def _inside(code: Any, value: Any) -> Iterable[Iterable[Node]]:
    """Return the sequences of nodes that a node holds."""
    if code in {op.MAX_REPEAT, op.MIN_REPEAT}:
        return [value[2]]
    if code is op.SUBPATTERN:
        return [value[3]]
    if code is op.BRANCH:
        return list(value[1])
    return [value[1]] if code in {op.ASSERT, op.ASSERT_NOT} else []


def characters(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yield all nodes for one character, however deep."""
    for code, value in nodes:
        if code in CHARACTERS:
            yield code, value
        for inner in _inside(code, value):
            yield from characters(inner)


def ranged(nodes: Iterable[Node]) -> int:
    """Return how many characters are in the sets of a pattern.

    Without regard to case, Python goes through all of them to compile it.
    """
    count = 0
    for code, value in characters(nodes):
        for kind, item in value if code is op.IN else ():
            low, high = item if kind is op.RANGE else (item, item) if kind is op.LITERAL else (0, 0)
            count += high - low + (WIDE if high > 0xFF else 0)  # noqa: PLR2004 - the last of Latin-1
    return count


def alike_digits(nodes: Iterable[Node]) -> Mapping[int, int]:
    """Return, for ``str.translate``, the first digit that a pattern cannot tell from each.

    It cannot where no node accepts the one and not the other. Layers and experts are numbered, so that most names of a
    checkpoint are one name to most patterns.
    """
    accepted = [(code, value) for code, value in characters(nodes)]
    like: dict[tuple[bool, ...], int] = {}
    return {
        ord(digit): like.setdefault(tuple(accepts(code, value, digit, 0) for code, value in accepted), ord(digit))
        for digit in DIGITS
    }


def holds(where: Any, name: str, place: int, flags: int) -> bool:
    """Return whether ``^``, ``$``, a word boundary or their like holds at a place between two characters of a name."""
    lines = bool(flags & re.MULTILINE)
    if where in {op.AT_BEGINNING, op.AT_BEGINNING_STRING}:
        return place == 0 or (lines and where is op.AT_BEGINNING and name[place - 1] == "\n")
    if where in {op.AT_END, op.AT_END_STRING}:
        rest = len(name) - place
        return rest == 0 or (where is op.AT_END and name[place] == "\n" and (lines or rest == 1))
    before = place > 0 and is_word(name[place - 1], flags)
    after = place < len(name) and is_word(name[place], flags)
    return before != after if where is op.AT_BOUNDARY else before == after and bool(name)


def is_word(character: str, flags: int) -> bool:
    r"""Return whether ``\w`` accepts a character."""
    return (character.isalnum() or character == "_") and not (flags & re.ASCII and ord(character) > 127)  # noqa: PLR2004 - the last of ASCII


def accepts(code: Any, value: Any, character: str, flags: int) -> bool:
    """Return whether a node for one character accepts this one."""
    if code is op.ANY:
        return bool(flags & re.DOTALL) or character != "\n"
    if code is op.LITERAL:
        return any(ord(form) == value for form in _forms(character, flags))
    if code is op.NOT_LITERAL:
        return not any(ord(form) == value for form in _forms(character, flags))
    negated = bool(value) and value[0][0] is op.NEGATE
    return any(_in_set(item, form, flags) for item in value for form in _forms(character, flags)) != negated


def _forms(character: str, flags: int) -> set[str]:
    """Return the character, and without regard to case its others of one letter."""
    if not flags & re.IGNORECASE:
        return {character}
    return {form for form in (character, character.lower(), character.upper()) if len(form) == 1}


def _in_set(item: Node, character: str, flags: int) -> bool:
    code, value = item
    if code is op.LITERAL:
        return bool(ord(character) == value)
    if code is op.RANGE:
        return bool(value[0] <= ord(character) <= value[1])
    if code is op.CATEGORY:
        return _in_category(value, character, flags)
    return False  # the sign of a negated set


def _in_category(category: Any, character: str, flags: int) -> bool:
    if category in {op.CATEGORY_WORD, op.CATEGORY_NOT_WORD}:
        return is_word(character, flags) == (category is op.CATEGORY_WORD)
    readable = not (flags & re.ASCII and ord(character) > 127)  # noqa: PLR2004 - the last of ASCII
    if category in {op.CATEGORY_DIGIT, op.CATEGORY_NOT_DIGIT}:
        return (character.isdecimal() and readable) == (category is op.CATEGORY_DIGIT)
    return (character.isspace() and readable) == (category is op.CATEGORY_SPACE)
