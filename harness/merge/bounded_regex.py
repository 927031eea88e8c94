"""Regular expressions out of untrusted files, matched in bounded time.

Python's own engine tries one way after the other: ``(.|..)(.|..)…`` takes for ever on a name of forty letters, whatever is forbidden about
its quantifiers. Here a pattern is read by Python's own parser, and followed over *sets* of positions: a set is an integer with a bit for every place between two
characters, a node of the pattern turns the set of places where it may start into the set of those where it may end, so nothing is tried
twice. Only whether a name matches is asked, so that what captures and what is greedy make no difference. Patterns that no set can follow (back
references, atomic groups) are refused, as are those that take more than ``MAX_STEPS`` even so.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from functools import lru_cache
from re import _constants as op  # type: ignore[attr-defined]  # the parser is not public, and has kept its form from 3.11 on
from re import _parser as parser  # type: ignore[attr-defined]  # as above
from typing import Any

from harness.merge.errors import UnsafePatternError

MAX_STEPS = 20_000
"""Nodes that one match may visit; published patterns visit a few hundred."""
MAX_DIRECT = 200_000
"""Characters that Python's own engine, which is quicker where nothing can go wrong, may look at in the worst case."""
NEVER = 64
"""Repeats that are too many for Python's own engine on any name."""
MAX_NAME = 4096
"""Characters of a name that is matched."""

CHARACTERS = frozenset({op.ANY, op.IN, op.LITERAL, op.NOT_LITERAL})
"""Nodes that stand for one character."""

Node = tuple[Any, Any]


def _refusal(text: str, why: str) -> UnsafePatternError:
    return UnsafePatternError(
        f"the adapter's configuration holds a pattern that {why}: {text[:120]!r}.",
        "Write the names out, or use a simpler pattern.",
    )


class BoundedPattern:
    """A regular expression that can be asked whether it matches, in bounded time.

    Raises:
        UnsafePatternError: it is malformed, or uses what sets of positions cannot follow.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "possible nested set" is not this program's to say
                self._compiled = re.compile(text)
                self._nodes: list[Node] = list(parser.parse(text))
            self._flags = self._compiled.flags
            self._repeats, self._choices = _branching(self._nodes)
        except (re.error, RecursionError, OverflowError, MemoryError) as error:
            raise UnsafePatternError(
                f"the adapter's configuration holds the malformed pattern {text[:120]!r}: {str(error)[:120]}."
            ) from None
        except NotImplementedError as error:
            raise _refusal(text, f"uses {error}, whose matching could take unbounded time") from None

    def match(self, name: str) -> bool:
        """Return whether the pattern matches at the beginning of ``name``, as ``re.match`` would.

        Raises:
            UnsafePatternError: that would take too long.
        """
        if self._direct(name):
            return self._compiled.match(name) is not None
        return bool(_Walk(self, name).run())

    def fullmatch(self, name: str) -> bool:
        """Return whether the pattern matches all of ``name``, as ``re.fullmatch`` would; see ``match``."""
        if self._direct(name):
            return self._compiled.fullmatch(name) is not None
        return bool(_Walk(self, name).run() >> len(name))

    def _direct(self, name: str) -> bool:
        """Return whether Python's own engine cannot take long: every repeat multiplies its work by the name's length, every choice doubles it."""
        work: int = (len(name) + 1) ** self._repeats * 2**self._choices * len(self.text)
        return work <= MAX_DIRECT

    @property
    def nodes(self) -> list[Node]:
        """The parsed pattern."""
        return self._nodes

    @property
    def flags(self) -> int:
        """Python's flags that hold for the whole pattern."""
        return self._flags


def _branching(nodes: Iterable[Node]) -> tuple[int, int]:
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
            found = _branching(value[2])
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
            found = _branching(one)
            repeats, choices = repeats + found[0], choices + found[1]
    return repeats, choices


def _ends_by_itself(repeated: Iterable[Node], following: Node | None) -> bool:
    """Return whether a repeat of one character can end at one place only: where the letter after it stands, which it does not take (``[0-9]+[.]``)."""
    (code, value), *more = repeated
    if more or code not in CHARACTERS - {op.ANY} or following is None or following[0] is not op.LITERAL:
        return False
    letter = chr(following[1])
    # Flags may stand anywhere in a pattern; about an ASCII letter only the one that ignores case can make a difference.
    return letter.isascii() and not any(_accepts(code, value, letter, flags) for flags in (0, re.IGNORECASE))


def _exclusive(branches: Iterable[Iterable[Node]]) -> bool:
    """Return whether at most one of several alternatives can match at a place: literal texts that do not begin alike, in any case."""
    first = [next(iter(branch), None) for branch in branches]
    letters = [chr(node[1]).casefold() for node in first if node is not None and node[0] is op.LITERAL]
    return len(letters) == len(first) == len(set(letters))


class _Walk:
    """One pattern over one name."""

    def __init__(self, pattern: BoundedPattern, name: str) -> None:
        if len(name) > MAX_NAME:
            raise _refusal(pattern.text, f"would have to match a name of {len(name)} characters")
        self._pattern = pattern
        self._name = name
        self._everywhere = (1 << (len(name) + 1)) - 1
        self._letters: Mapping[str, int] = _letters(name)
        self._fits: dict[tuple[Any, int, int], int] = {}
        self._steps = 0

    def run(self) -> int:
        """Return the places where a match that begins at the beginning may end."""
        return self._follow(self._pattern.nodes, 1, self._pattern.flags, forward=True)

    def _follow(self, nodes: Iterable[Node], places: int, flags: int, *, forward: bool) -> int:
        """Return where a sequence of nodes may end that starts at ``places``; backward, where it may start that ends there."""
        for code, value in nodes if forward else reversed(list(nodes)):
            if not places:
                return 0
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise _refusal(self._pattern.text, "takes too long to match")
            places = self._one(code, value, places, flags, forward=forward)
        return places

    def _one(self, code: Any, value: Any, places: int, flags: int, *, forward: bool) -> int:
        if code in {op.MAX_REPEAT, op.MIN_REPEAT}:
            return self._repeat(value, places, flags, forward=forward)
        if code is op.SUBPATTERN:
            _, added, taken, inner = value
            return self._follow(inner, places, (flags | added) & ~taken, forward=forward)
        if code is op.BRANCH:
            found = 0
            for branch in value[1]:
                found |= self._follow(branch, places, flags, forward=forward)
            return found
        if code in {op.ASSERT, op.ASSERT_NOT}:
            ahead, inner = value[0] > 0, value[1]
            # What is ahead begins here: ask from every end back. What is behind ends here: ask from every start on.
            held = self._follow(inner, self._everywhere, flags, forward=not ahead)
            return places & (held if code is op.ASSERT else ~held)
        if code is op.AT:
            return places & _positions(self._name, value, flags)
        if code is op.LITERAL and not flags & re.IGNORECASE:
            fitting = self._letters.get(chr(value), 0)
        else:
            fitting = self._fitting(code, value, flags)
        return (places & fitting) << 1 if forward else (places >> 1) & fitting

    def _fitting(self, code: Any, value: Any, flags: int) -> int:
        """Return, as bits, which characters of the name a node for one character accepts; nodes live as long as the pattern."""
        node = (code, id(value), flags)
        if node not in self._fits:
            accepted = [
                places for character, places in self._letters.items() if _accepts(code, value, character, flags)
            ]
            self._fits[node] = sum(accepted)  # every place is one character's, so that the sum is the union
        return self._fits[node]

    def _run(self, places: int, fitting: int, *, forward: bool) -> int:
        """Return the places that any number of fitting characters leads to, twice as many with each step."""
        length = 1
        while fitting:
            places |= (places & fitting) << length if forward else (places >> length) & fitting
            fitting &= fitting >> length
            length *= 2
        return places

    def _repeat(self, value: Any, places: int, flags: int, *, forward: bool) -> int:
        """Return the places after between ``least`` and ``most`` rounds of the inner nodes."""
        least, most, inner = value
        if least <= 1 and most is op.MAXREPEAT and len(inner) == 1 and inner[0][0] in CHARACTERS:
            self._steps += 1
            code, one = inner[0]
            start = places if least == 0 else self._one(code, one, places, flags, forward=forward)
            return self._run(start, self._fitting(code, one, flags), forward=forward)
        for _ in range(min(least, len(self._name) + 2)):
            # A round that moves nothing any more, or finds nothing, will not do so later.
            after = self._follow(inner, places, flags, forward=forward)
            if after in {places, 0}:
                places = after
                break
            places = after
        reached = new = places
        for _ in range(min(most - least, len(self._name) + 1)):
            new = self._follow(inner, new, flags, forward=forward) & ~reached
            if not new:
                break
            reached |= new
        return reached


@lru_cache(maxsize=1024)
def _letters(name: str) -> Mapping[str, int]:
    """Return the places of each character of a name, as bits."""
    found: dict[str, int] = {}
    for place, character in enumerate(name):
        found[character] = found.get(character, 0) | 1 << place
    return found


@lru_cache(maxsize=1024)
def _positions(name: str, where: Any, flags: int) -> int:
    """Return the places in a name at which ``^``, ``$``, a word boundary or their like hold."""
    count, lines = len(name), bool(flags & re.MULTILINE)
    words = [_word(character, flags) for character in name]
    held = 0
    for place in range(count + 1):
        before, after = place > 0 and words[place - 1], place < count and words[place]
        true = {
            op.AT_BEGINNING: place == 0 or (lines and name[place - 1] == "\n"),
            op.AT_BEGINNING_STRING: place == 0,
            op.AT_END: place == count or (name[place] == "\n" and (lines or place == count - 1)),
            op.AT_END_STRING: place == count,
            op.AT_BOUNDARY: before != after,
            op.AT_NON_BOUNDARY: before == after and count > 0,
        }[where]
        held |= true << place
    return held


def _word(character: str, flags: int) -> bool:
    return (character.isalnum() or character == "_") and not (flags & re.ASCII and ord(character) > 127)  # noqa: PLR2004 - the last of ASCII


def _accepts(code: Any, value: Any, character: str, flags: int) -> bool:
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
        ascii_only = bool(flags & re.ASCII) and ord(character) > 127  # noqa: PLR2004 - the last of ASCII
        positive: dict[Any, bool] = {
            op.CATEGORY_DIGIT: character.isdecimal() and not ascii_only,
            op.CATEGORY_SPACE: character.isspace() and not ascii_only,
            op.CATEGORY_WORD: _word(character, flags),
        }
        negative: dict[Any, Any] = {op.CATEGORY_NOT_DIGIT: op.CATEGORY_DIGIT, op.CATEGORY_NOT_SPACE: op.CATEGORY_SPACE, op.CATEGORY_NOT_WORD: op.CATEGORY_WORD}  # fmt: skip
        return positive[value] if value in positive else not positive[negative[value]]
    return False  # the sign of a negated set
