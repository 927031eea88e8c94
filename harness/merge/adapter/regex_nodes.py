"""What single nodes of a parsed regular expression say: which characters they accept, and how far matching could branch at them.

Nodes are those of Python's own parser: (code, value), nested as the pattern is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from re import _constants as op  # type: ignore[attr-defined]  # the parser is not public, and has kept its form from 3.11 on
from typing import Any

CHARACTERS = frozenset({op.ANY, op.IN, op.LITERAL, op.NOT_LITERAL})
"""Nodes that stand for one character."""
NEVER = 64
"""Repeats that are too many for Python's own engine on any name."""
DIGITS = "0123456789"
WIDE = 1000
"""How many characters one beyond Latin-1 counts as in a set: Python makes a map of all of Unicode's first plane."""

Node = tuple[Any, Any]


def branching(nodes: Iterable[Node]) -> tuple[int, int]:
    """Return (repeats, choices) of a pattern: how often an engine that backtracks could go on differently.

    Raises:
        NotImplementedError: a construct that sets cannot follow, named.
    """
    repeats = choices = 0
    sequence = list(nodes)
    for place, (code, value) in enumerate(sequence):
        following = sequence[place + 1] if place + 1 < len(sequence) else None
        inner: list[Iterable[Node]] = []
        if code in {op.MAX_REPEAT, op.MIN_REPEAT} and _ends_by_itself(value[2], following):
            continue
        if code in {op.MAX_REPEAT, op.MIN_REPEAT}:
            found = branching(value[2])
            # What repeats more than one character may go on differently within, or match nothing a billion times.
            simple = len(value[2]) == 1 and value[2][0][0] in CHARACTERS
            within = 0 if value[1] <= 1 else 1 if simple else NEVER
            repeats, choices = repeats + found[0] + within, choices + found[1] + 1
        elif code is op.SUBPATTERN:
            inner = [value[3]]
        elif code is op.BRANCH:
            choices += 0 if _exclusive(value[1]) else len(value[1])
            inner = list(value[1])
        elif code in {op.ASSERT, op.ASSERT_NOT}:
            inner = [value[1]]
        elif code is not op.AT and code not in CHARACTERS:
            raise NotImplementedError(str(code).lower().replace("_", " "))
        for one in inner:
            found = branching(one)
            repeats, choices = repeats + found[0], choices + found[1]
    return repeats, choices


def _ends_by_itself(repeated: Iterable[Node], following: Node | None) -> bool:
    """Return whether a repeat of one character can end at one place only: where the letter after it stands, which it does not take (``[0-9]+[.]``)."""
    (code, value), *more = repeated
    if more or code not in CHARACTERS - {op.ANY} or following is None or following[0] is not op.LITERAL:
        return False
    letter = chr(following[1])
    # Flags may stand anywhere in a pattern; about an ASCII letter only the one that ignores case can make a difference.
    return letter.isascii() and not any(accepts(code, value, letter, flags) for flags in (0, re.IGNORECASE))


def _exclusive(branches: Iterable[Iterable[Node]]) -> bool:
    """Return whether at most one of several alternatives can match at a place: literal texts that do not begin alike, in any case."""
    first = [next(iter(branch), None) for branch in branches]
    letters = [chr(node[1]).casefold() for node in first if node is not None and node[0] is op.LITERAL]
    return len(letters) == len(first) == len(set(letters))


def characters(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yield all nodes for one character, however deep."""
    for code, value in nodes:
        if code in CHARACTERS:
            yield code, value
        elif code in {op.MAX_REPEAT, op.MIN_REPEAT}:
            yield from characters(value[2])
        elif code is op.SUBPATTERN:
            yield from characters(value[3])
        elif code is op.BRANCH:
            for branch in value[1]:
                yield from characters(branch)
        elif code in {op.ASSERT, op.ASSERT_NOT}:
            yield from characters(value[1])


def ranged(nodes: Iterable[Node]) -> int:
    """Return how many characters are in the sets of a pattern: without regard to case, Python goes through all of them to compile it."""
    count = 0
    for code, value in characters(nodes):
        for kind, item in value if code is op.IN else ():
            low, high = item if kind is op.RANGE else (item, item) if kind is op.LITERAL else (0, 0)
            count += high - low + (WIDE if high > 0xFF else 0)  # noqa: PLR2004 - the last of Latin-1
    return count


def alike_digits(nodes: Iterable[Node]) -> Mapping[int, int]:
    """Return, for ``str.translate``, the first digit that a pattern cannot tell from each: no node accepts the one and not the other.

    Layers and experts are numbered, so that most names of a checkpoint are one name to most patterns.
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
