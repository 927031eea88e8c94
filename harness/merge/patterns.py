"""How PEFT matches names: rank_pattern and alpha_pattern, target_modules, target_parameters.

The rules are PEFT's (0.18.0 to 0.21.2: ``peft.utils.other.get_pattern_key``, ``peft.tuners.tuners_utils.
check_target_module_exists`` and ``BaseTuner._inject_parameters``), restated here so that a merge needs no PEFT. Patterns are
regular expressions out of an untrusted file: those that look as if they were made to run for ever are refused, and the rest is matched in
bounded time (``bounded_regex``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from harness.merge.bounded_regex import BoundedPattern
from harness.merge.errors import UnsafePatternError

MAX_PATTERN = 2000
MAX_QUANTIFIERS = 6
"""``(.*\\.)?`` in front included; no published adapter needs as many."""

_ESCAPED = re.compile(r"\\.|\[[^\]]*\]")
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_QUANTIFIER = re.compile(r"(?<!\()[*+?]\??|\{\d*,?\d*\}\??")
_PLAIN = re.compile(r"[A-Za-z0-9_.]+")


@lru_cache(maxsize=65536)
def compile_safely(text: str) -> BoundedPattern:
    """Compile a regular expression out of an adapter's configuration.

    Raises:
        UnsafePatternError: it is malformed, very long, repeats a group, or has more quantifiers than a name needs.
    """
    skeleton = _ESCAPED.sub("x", text)
    if (
        len(text) > MAX_PATTERN
        or _REPEATED_GROUP.search(skeleton)
        or len(_QUANTIFIER.findall(skeleton)) > MAX_QUANTIFIERS
    ):
        raise UnsafePatternError(
            f"the adapter's configuration holds a pattern whose matching could take unbounded time: {text[:120]!r}.",
            "Write the names out, or use a simpler pattern.",
        )
    return BoundedPattern(text)


def pattern_value(patterns: Mapping[str, float], name: str, default: float) -> float:
    r"""Return the value of the first pattern that matches ``name``, by PEFT's rule.

    A pattern matches when ``(.*\.)?(pattern)$`` matches from the start: a whole trailing run of dotted parts.
    ``name`` is the module's path in memory, or for a targeted parameter ``module.parameter``.
    """
    for pattern, value in patterns.items():
        if _PLAIN.fullmatch(pattern) and len(pattern) > len(name):
            continue  # a plain name matches its own length only; this skips most of a long literal table
        if compile_safely(rf"(.*\.)?({pattern})$").match(name):
            return value
    return default


def names_suffix(name: str, entries: Iterable[str]) -> bool:
    """Return whether ``name`` is one of ``entries`` or ends in ``.entry``, as PEFT's lists of names match."""
    return any(name == entry or name.endswith(f".{entry}") for entry in entries)


def excludes_module(name: str, exclude_modules: str | Sequence[str] | None) -> bool:
    """Return whether PEFT would leave out a module called ``name`` because of ``exclude_modules``."""
    if isinstance(exclude_modules, str):
        return compile_safely(exclude_modules).fullmatch(name)
    return bool(exclude_modules) and names_suffix(name, exclude_modules or ())


def targets_module(
    name: str,
    layer: int | None,
    *,
    target_modules: str | Sequence[str] | None,
    exclude_modules: str | Sequence[str] | None,
    layers_to_transform: Sequence[int] | None,
) -> bool:
    """Return whether PEFT would attach a LoRA to a Linear called ``name``.

    ``layer`` is the decoder layer the module is in; ``layers_to_transform`` restricts lists of names only, not regular
    expressions, as in PEFT.
    """
    if excludes_module(name, exclude_modules) or target_modules is None:
        return False
    if isinstance(target_modules, str):
        return target_modules == "all-linear" or compile_safely(target_modules).fullmatch(name)
    if not names_suffix(name, target_modules):
        return False
    return layers_to_transform is None or layer in layers_to_transform
