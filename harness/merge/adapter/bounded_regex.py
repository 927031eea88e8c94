"""Regular expressions out of untrusted files, matched in bounded time.

Python's own engine tries one way after the other. ``(.|..)(.|..)…`` takes for ever on a name of forty letters, whatever
is forbidden about its quantifiers. Here a pattern is read by Python's own parser and followed over *sets* of positions.
A set is an integer with a bit for every place between two characters. A node of the pattern turns the set of places
where it may start into the set of those where it may end. So nothing is tried twice.

Only whether a name matches is asked: what captures and what is greedy make no difference. Patterns that no set can
follow (back references, atomic groups) are refused. So are those that take more than ``MAX_STEPS`` even so.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from re import _constants as op  # type: ignore[attr-defined]  # the parser is not public, and has kept its form from 3.11 on
from re import _parser as parser  # type: ignore[attr-defined]  # as above
from typing import Any

from harness.merge.adapter.regex_nodes import (
    CHARACTERS,
    Node,
    accepts,
    alike_digits,
    check_followable,
    holds,
    ranged,
)
from harness.merge.errors import UnsafePatternError

MAX_STEPS = 20_000
"""Nodes that one match may visit; published patterns visit a few hundred."""
ALL_STEPS = 2_500_000
"""Steps of about a microsecond that all patterns of a configuration may take together, compiled and matched against
every name.
"""

# What takes how many steps, measured.
PER_PATTERN, PER_LETTER = 100, 10
"""Compiling a pattern, and each of its characters."""
RANGED = 0.1
"""Compiling a set, for each character in its ranges."""
ASKED = 0.5
"""Asking for an answer, known or not."""
NAMED = 0.2
"""Each character of a name that is gone through."""
ACCEPTED = 0.5
"""Holding a character against an item of a set."""

MAX_NAME = 4096
"""Characters of a name that is matched."""
REMEMBERED = 2**16
"""Answers that are kept."""


def _refusal(setting: str, text: str, why: str) -> UnsafePatternError:
    return UnsafePatternError(
        f"the adapter's {setting} holds a pattern that {why}: {text[:120]!r}.",
        "Write the names out, or use a simpler pattern.",
    )


class Budget:
    """What all patterns of one configuration may take together, and the answers that they share."""

    def __init__(self, steps: int = ALL_STEPS) -> None:
        self._left: float = steps
        self.answers: dict[tuple[BoundedPattern, str, bool], bool] = {}

    def spend(self, steps: float, setting: str) -> None:
        """Take steps out of the budget.

        Raises:
            UnsafePatternError: it is spent.
        """
        self._left -= steps
        if self._left < 0:
            raise UnsafePatternError(
                "the patterns of adapter_config.json take too long to match against the names of this model;"
                f" {setting} was the last.",
                "Write fewer or simpler patterns; names that are written out in lists cost nothing.",
            )


class BoundedPattern:
    """A regular expression that can be asked whether it matches, in bounded time.

    Args:
        text: the expression.
        setting: where it stands, for messages.
        budget: what it may take, together with others.

    ``flags`` are Python's that hold for the whole pattern.

    Raises:
        UnsafePatternError: it is malformed, uses what sets of positions cannot follow, or would take too long to
            compile.
    """

    def __init__(self, text: str, setting: str = "configuration", budget: Budget | None = None) -> None:
        self.text = text
        self.setting = setting
        self.budget = budget or Budget()
        self.accepted: dict[tuple[Any, int, int, str], bool] = {}
        self.budget.spend(PER_PATTERN + PER_LETTER * len(text), setting)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "possible nested set" is not this program's to say
                self._nodes: list[Node] = list(parser.parse(text))
                check_followable(self._nodes)
                self.budget.spend(ranged(self._nodes) * RANGED, setting)
                self.flags: int = re.compile(text).flags  # which refuses what the parser alone does not
            self._alike = alike_digits(self._nodes)
        except (re.error, RecursionError, OverflowError, MemoryError) as error:
            raise UnsafePatternError(
                f"the adapter's {setting} holds the malformed pattern {text[:120]!r}: {str(error)[:120]}."
            ) from None
        except NotImplementedError as error:
            raise _refusal(setting, text, f"uses {error}, whose matching could take unbounded time") from None

    def match(self, name: str) -> bool:
        """Return whether the pattern matches at the beginning of ``name``, as ``re.match`` would.

        Raises:
            UnsafePatternError: that would take too long.
        """
        return self._answer(name, whole=False)

    def fullmatch(self, name: str) -> bool:
        """Return whether the pattern matches all of ``name``, as ``re.fullmatch`` would; see ``match``."""
        return self._answer(name, whole=True)

    def _answer(self, name: str, *, whole: bool) -> bool:
        """Return the answer for a name.

        It is the same for all names that differ only in digits that the pattern does not tell apart.
        """
        self.budget.spend(ASKED, self.setting)
        asked = (self, name.translate(self._alike), whole)
        answers = self.budget.answers
        if asked not in answers:
            if len(answers) >= REMEMBERED:
                answers.clear()
            answers[asked] = self._match(*asked[1:])
        return answers[asked]

    def _match(self, name: str, whole: bool) -> bool:
        places = _Walk(self, name).run()
        return bool(places >> len(name) if whole else places)

    @property
    def nodes(self) -> list[Node]:
        """The parsed pattern."""
        return self._nodes


class _Walk:
    """One pattern over one name."""

    def __init__(self, pattern: BoundedPattern, name: str) -> None:
        if len(name) > MAX_NAME:
            raise _refusal(pattern.setting, pattern.text, f"would have to match a name of {len(name)} characters")
        self._pattern = pattern
        self._spend = partial(pattern.budget.spend, setting=pattern.setting)
        self._spend(len(name) * NAMED)
        self._name = name
        self._everywhere = (1 << (len(name) + 1)) - 1
        self._letters: Mapping[str, int] = _letters(name)
        self._fits: dict[tuple[Any, int, int], int] = {}
        self._held: dict[tuple[Any, int], int] = {}
        self._steps = 0

    def run(self) -> int:
        """Return the places where a match that begins at the beginning may end."""
        return self._follow(self._pattern.nodes, 1, self._pattern.flags, forward=True)

    def _follow(self, nodes: Iterable[Node], places: int, flags: int, *, forward: bool) -> int:
        """Return where a sequence of nodes may end that starts at ``places``; backward, where it may start that ends
        there.
        """
        for code, value in nodes if forward else reversed(list(nodes)):
            if not places:
                return 0
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise _refusal(self._pattern.setting, self._pattern.text, "takes too long to match")
            self._spend(1)
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
            return places & self._positions(value, flags)
        if code is op.LITERAL and not flags & re.IGNORECASE:
            fitting = self._letters.get(chr(value), 0)
        else:
            fitting = self._fitting(code, value, flags)
        return (places & fitting) << 1 if forward else (places >> 1) & fitting

    def _fitting(self, code: Any, value: Any, flags: int) -> int:
        """Return, as bits, which characters of the name a node for one character accepts.

        Nodes live as long as the pattern.
        """
        node = (code, id(value), flags)
        if node not in self._fits:
            self._spend(len(self._letters) * NAMED)
            accepted = [
                places for character, places in self._letters.items() if self._accepts(code, value, character, flags)
            ]
            self._fits[node] = sum(accepted)  # every place is one character's, so that the sum is the union
        return self._fits[node]

    def _accepts(self, code: Any, value: Any, character: str, flags: int) -> bool:
        """Return what ``accepts`` does, worked out once for all names."""
        asked, known = (code, id(value), flags, character), self._pattern.accepted
        if asked not in known:
            self._spend((len(value) if code is op.IN else 1) * ACCEPTED)
            known[asked] = accepts(code, value, character, flags)
        return known[asked]

    def _positions(self, where: Any, flags: int) -> int:
        """Return, as bits, the places in the name at which ``^``, ``$``, a word boundary or their like hold."""
        if (where, flags) not in self._held:
            self._spend(len(self._name))
            places = range(len(self._name) + 1)
            self._held[where, flags] = sum(1 << place for place in places if holds(where, self._name, place, flags))
        return self._held[where, flags]

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
