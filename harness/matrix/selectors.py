"""Selectors: what can be written where a version is wanted, and which releases it means. Pure.

| written | means |
|---|---|
| ``5.5.0``, ``==5.5.0`` | that release, a pre-release or a yanked one too |
| ``>=5.2,<5.6``, ``==5.5.*`` | every release in the range (PEP 440) |
| ``latest`` | the newest release |
| ``latest<5.20`` | the newest release in the range |
| ``latest-minors:3`` | the newest patch of each of the three newest minors |
| ``latest-patches`` | the newest patch of every minor |
| ``oldest`` | the oldest release that the harness supports |
| ``git+URL@REF``, a path, a wheel | what is built from there, see ``sources`` |

Pre-releases count where they are asked for (``--pre``, ``pre = true``) or where a range names one. Yanked releases
never count, unless one is pinned exactly, and then that is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version
from pydantic import AfterValidator

from harness.contract.supported import OLDEST
from harness.errors import ConfigurationError, nearest
from harness.matrix.cell import canonical_version
from harness.matrix.releases import Release, newest_first, supported
from harness.matrix.sources import SourceSelector, parse_source

_WORDS = ("latest", "latest-minors:N", "latest-patches", "oldest")
_OPERATOR = re.compile(r"\s*(?:~=|==|!=|<=|>=|<|>)")


@dataclass(frozen=True)
class Exact:
    """One version."""

    version: str


@dataclass(frozen=True)
class Range:
    """Every release that a PEP 440 specifier takes."""

    specifiers: SpecifierSet


@dataclass(frozen=True)
class Latest:
    """The newest release, or the newest that a PEP 440 specifier takes."""

    within: SpecifierSet | None = None


@dataclass(frozen=True)
class Oldest:
    """The oldest release that the harness supports."""


@dataclass(frozen=True)
class LatestPatches:
    """The newest patch of every minor, or of the ``minors`` newest ones."""

    minors: int | None = None


Selector = Exact | Range | Latest | Oldest | LatestPatches | SourceSelector


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The versions that a selector means, the newest first, and what a reader should know of the choice."""

    versions: tuple[str, ...]
    notes: tuple[str, ...] = ()


def parse_selector(text: str) -> Selector:
    """Parse a selector.

    Raises:
        ValueError: it is none; the message says what was meant, as far as it can be guessed.
    """
    text = text.strip()
    if (source := parse_source(text)) is not None:
        return source
    if found := re.fullmatch(r"latest-minors:(\d{1,4})", text):
        if not (count := int(found[1])):
            raise ValueError(f"{text!r}: of how many minors? At least 1")
        return LatestPatches(minors=count)
    if found := re.fullmatch(rf"latest(?P<range>{_OPERATOR.pattern}.*)", text):
        return Latest(within=_specifiers(found["range"].strip()))
    words: dict[str, Selector] = {"latest": Latest(), "oldest": Oldest(), "latest-patches": LatestPatches()}
    if text in words:
        return words[text]
    if text.startswith("==") and not text.startswith("===") and "," not in text and "*" not in text:
        text = text.removeprefix("==").strip()
    if _OPERATOR.match(text):
        return Range(_specifiers(text))
    if re.match(r"[A-Za-z]*-|(?![vV]\d)[A-Za-z]{2,}", text):
        near = nearest(text, _WORDS)
        raise ValueError(f"{text!r} is no selector of versions{f'; did you mean {near!r}?' if near else ''}")
    return Exact(_released(text))


def _specifiers(text: str) -> SpecifierSet:
    try:
        return SpecifierSet(text)
    except InvalidSpecifier:
        raise ValueError(f"{text!r} is not a range of versions (PEP 440), such as '>=5.2,<5.6'") from None


def _released(text: str) -> str:
    version = canonical_version(text)
    if Version(version).local:
        raise ValueError(
            f"{text!r} names a build (+…), which no release has; did you mean {Version(version).public!r}?"
        )
    return version


ReleaseText = Annotated[str, AfterValidator(_released)]
"""An exact version of a package whose releases have no builds."""


def _checked(text: str) -> str:
    parse_selector(text)
    return text


SelectorText = Annotated[str, AfterValidator(_checked)]
"""A selector as it is written in a configuration file."""


def select(selector: Selector, releases: Sequence[Release], *, package: str, pre: bool = False) -> Selected:
    """Return the versions that a selector means among ``releases``.

    Args:
        selector: any but a source.
        releases: what the indexes offer, in any order.
        package: whose releases they are.
        pre: whether pre-releases count.

    Raises:
        ConfigurationError: it means none of them.
        TypeError: it is a source, which is not among releases.
    """
    if isinstance(selector, SourceSelector):
        raise TypeError(f"{selector.text} is no release of {package}")
    offered = newest_first(releases)
    if isinstance(selector, Exact):
        return _exact(selector, offered, package)
    within = _bounds(selector)
    counting = pre or (within is not None and bool(within.prereleases))
    usable = [it for it in offered if not it.yanked and (counting or not it.number.is_prerelease)]
    usable = [it for it in usable if supported(package, it.number)]
    chosen: list[Release] = []
    match selector:
        case Latest():
            chosen = [it for it in usable if within is None or within.contains(it.number, prereleases=True)][:1]
        case Oldest():
            chosen = usable[-1:]
        case Range(specifiers):
            chosen = [it for it in usable if specifiers.contains(it.number, prereleases=True)]
        case LatestPatches():
            # Newest first, so what comes first of a minor is its newest patch; a dict keeps the first place of a key.
            by_minor: dict[tuple[int, int], Release] = {}
            for release in usable:
                by_minor.setdefault((release.number.major, release.number.minor), release)
            chosen = list(by_minor.values())[: selector.minors]
    if not chosen:
        raise _none_selected(selector, offered, usable, package)
    return Selected(versions=tuple(it.version for it in chosen))


def _exact(selector: Exact, offered: Sequence[Release], package: str) -> Selected:
    """Return an exact version whether or not it is known here: whether it exists the indexes are asked later."""
    found = next((it for it in offered if it.number == Version(selector.version)), None)
    yanked = found is not None and found.yanked
    notes = (f"{package} {selector.version} is yanked; it is taken because it is pinned exactly.",) if yanked else ()
    return Selected(versions=(selector.version,), notes=notes)


def _none_selected(
    selector: Selector, offered: Sequence[Release], usable: Sequence[Release], package: str
) -> ConfigurationError:
    within = _bounds(selector)
    inside = [it for it in offered if within is None or within.contains(it.number, prereleases=True)]
    words = str(within) if within is not None else type(selector).__name__.lower()
    reasons = "; ".join(f"{it.version} is {_unusable(it, package)}" for it in inside[:3])
    known = f"{usable[-1].version} to {usable[0].version}" if usable else "none"
    return ConfigurationError(
        f"{package}: {words!r} selects no release{': ' if reasons else ''}{reasons}.",
        remedy=f"Releases that can be selected: {known}; the harness supports {package} {OLDEST.get(package, '0')} on.",
    )


def _bounds(selector: Selector) -> SpecifierSet | None:
    match selector:
        case Range(specifiers):
            return specifiers
        case Latest(within):
            return within
    return None


def _unusable(release: Release, package: str) -> str:
    """Say why a release inside a range does not count."""
    if release.yanked:
        return "yanked"
    return "a pre-release (--pre)" if supported(package, release.number) else "too old for the harness"
