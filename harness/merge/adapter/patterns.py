"""How PEFT matches names: rank_pattern and alpha_pattern, target_modules, target_parameters.

The rules are PEFT's (0.18.0 to 0.21.2: ``peft.utils.other.get_pattern_key``,
``peft.tuners.tuners_utils.check_target_module_exists`` and ``BaseTuner._inject_parameters``). They are restated here so
that a merge needs no PEFT.

Patterns are regular expressions out of an untrusted file. Those that look as if they were made to run for ever are
refused. The rest is matched within a budget that all patterns of a configuration share (``bounded_regex``). Names that
are written out are looked up, and cost next to nothing however many they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from harness.merge.adapter.bounded_regex import NAMED, BoundedPattern, Budget
from harness.merge.errors import UnsafePatternError

ALL_LINEAR = "all-linear"
"""What PEFT's target_modules call every Linear but the output layer."""
MAX_PATTERN = 2000
MAX_QUANTIFIERS = 6
"""``(.*\\.)?`` in front included; no published adapter needs as many."""

FORM = 0.2
"""Steps that it takes to look whether a plain pattern's form fits a name."""

_ESCAPED = re.compile(r"\\.|\[[^\]]*\]")
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_QUANTIFIER = re.compile(r"(?<!\()[*+?]\??|\{\d*,?\d*\}\??")
_PLAIN = re.compile(r"\^?(?:[A-Za-z0-9_]|\\?\.)+")


def compile_safely(text: str, setting: str, budget: Budget) -> BoundedPattern:
    """Compile a regular expression out of an adapter's configuration, the value or a key of ``setting``.

    Raises:
        UnsafePatternError: it is malformed, very long, repeats a group, has more quantifiers than a name needs, or the
            budget is spent.
    """
    skeleton = _ESCAPED.sub("x", text[: MAX_PATTERN + 1])
    if (
        len(text) > MAX_PATTERN
        or _REPEATED_GROUP.search(skeleton)
        or len(_QUANTIFIER.findall(skeleton)) > MAX_QUANTIFIERS
    ):
        raise UnsafePatternError(
            f"the adapter's {setting} holds a pattern whose matching could take unbounded time: {text[:120]!r}.",
            "Write the names out, or use a simpler pattern.",
        )
    return BoundedPattern(text, setting, budget)


class PatternTable:
    r"""rank_pattern or alpha_pattern: values by pattern, of which the first that matches a name counts, by PEFT's rule.

    A pattern matches when ``(.*\.)?(pattern)$`` matches from the start: a whole trailing run of dotted parts. Some
    patterns are a name, its dots escaped or standing for any character. Those are looked up by their length and where
    their dots are. The others are tried in turn.
    """

    def __init__(
        self, patterns: Mapping[str, float], setting: str = "configuration", budget: Budget | None = None
    ) -> None:
        self._setting = setting
        self._budget = budget or Budget()
        self._values = list(patterns.values())
        self._plain: dict[tuple[bool, int, tuple[int, ...]], dict[str, int]] = {}
        self._others: list[tuple[int, str]] = []
        self._compiled: dict[str, BoundedPattern] = {}
        for place, pattern in enumerate(patterns):
            if _PLAIN.fullmatch(pattern):
                letters = re.findall(r"\\?.", pattern.removeprefix("^"))
                dots = tuple(number for number, letter in enumerate(letters) if letter == ".")
                form = (pattern.startswith("^"), len(letters), dots)
                self._plain.setdefault(form, {}).setdefault("".join(letters).replace("\\", ""), place)
            else:
                self._others.append((place, pattern))

    def value(self, name: str, default: float) -> float:
        """Return the value for a name: a module's path in memory, or for a targeted parameter ``module.parameter``.

        Raises:
            UnsafePatternError: a pattern that may match is malformed, or matching takes too long.
        """
        first = self._first_plain(name)
        for place, pattern in self._others:
            if place > first:
                break
            if pattern not in self._compiled:
                self._compiled[pattern] = compile_safely(rf"(.*\.)?({pattern})$", self._setting, self._budget)
            if self._compiled[pattern].match(name):
                return self._values[place]
        return self._values[first] if first < len(self._values) else default

    def _first_plain(self, name: str) -> int:
        """Return the place of the first plain pattern that matches, the number of patterns where none does."""
        first = len(self._values)
        name = name.removesuffix("\n")  # as ``$`` does; no dot stands for another line end
        for (anchored, length, dots), places in self._plain.items() if "\n" not in name else ():
            self._budget.spend(FORM, self._setting)
            start = len(name) - length
            if start == 0 or (start > 0 and name[start - 1] == "." and not anchored):
                self._budget.spend(length * NAMED, self._setting)
                letters = list(name[start:])
                for dot in dots:
                    letters[dot] = "."
                first = min(first, places.get("".join(letters), first))
        return first


class ModuleRule:
    """target_modules or exclude_modules: a regular expression for whole names, or names of which one must end a path.

    ``text`` is the expression, None where names were given.
    """

    def __init__(
        self, given: str | Collection[str] | None, setting: str = "configuration", budget: Budget | None = None
    ) -> None:
        self._setting = setting
        self._budget = budget or Budget()
        self._names = frozenset(given or ()) if not isinstance(given, str) else frozenset()
        self.text = given if isinstance(given, str) else None
        self._pattern: BoundedPattern | None = None

    def covers(self, name: str) -> bool:
        """Return whether the rule holds for a module called ``name``.

        Raises:
            UnsafePatternError: the pattern is malformed, or matching takes too long.
        """
        if self.text is None:
            return names_suffix(name, self._names)
        if self._pattern is None:
            self._pattern = compile_safely(self.text, self._setting, self._budget)
        return self._pattern.fullmatch(name)


def suffixes(name: str) -> Iterator[str]:
    """Yield ``name`` and what is left of it after each of its dots.

    >>> list(suffixes("mlp.gate.weight"))
    ['mlp.gate.weight', 'gate.weight', 'weight']
    """
    yield name
    while (dot := name.find(".")) >= 0:
        name = name[dot + 1 :]
        yield name


def names_suffix(name: str, entries: Collection[str]) -> bool:
    """Return whether ``name`` is one of ``entries`` or ends in ``.entry``, as PEFT's lists of names match.

    ``entries`` should be a set where there may be many.
    """
    return any(suffix in entries for suffix in suffixes(name)) if entries else False


def names_within(module: str, entries: Collection[str]) -> set[str]:
    """Return the entries that ``module`` or a module around it is called by, in the sense of ``names_suffix``."""
    ends = [place for place, letter in enumerate(f"{module}.") if letter == "."] if entries else []
    return {suffix for end in ends for suffix in suffixes(module[:end]) if suffix in entries}


def targets_module(
    name: str,
    layer: int | None,
    *,
    target_modules: ModuleRule,
    exclude_modules: ModuleRule,
    layers_to_transform: Collection[int] | None,
) -> bool:
    """Return whether PEFT would attach a LoRA to a Linear called ``name``.

    ``layer`` is the decoder layer the module is in; ``layers_to_transform`` restricts lists of names only, not regular
    expressions, as in PEFT.
    """
    if exclude_modules.covers(name):
        return False
    if target_modules.text is not None:
        return target_modules.text == ALL_LINEAR or target_modules.covers(name)
    return target_modules.covers(name) and (layers_to_transform is None or layer in layers_to_transform)
