"""From a ``[[selections]]`` to stacks: versions selected, combined, completed, and what is new first. Pure.

The same offer of releases always gives the same stacks in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from packaging.version import Version

from harness.errors import ConfigurationError
from harness.matrix.cell import MAIN_PACKAGES, PINNED, Stack
from harness.matrix.choice import Choice, Chooser, as_resolved, open_requirement, stack_of, with_choices
from harness.matrix.combine import Combination, combine
from harness.matrix.conditions import Condition, parse_condition
from harness.matrix.config import MatrixConfig
from harness.matrix.selections import Index, SelectedVersions, VersionSelection, selected_versions


class Asked(Chooser, Index, Protocol):
    """Everything that is asked of indexes, repositories and the resolver."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """The stacks of one selection.

    Attributes:
        stacks: with new releases first, then the newest first, each once.
        reasons: by stack key, the selectors that its versions come from.
        news: sentences about releases that are new.
        new: the keys of the stacks that have such a release.
    """

    stacks: tuple[Stack, ...]
    reasons: Mapping[str, str]
    news: tuple[str, ...] = ()
    new: frozenset[str] = frozenset()


def generate_stacks(config: MatrixConfig, selection: VersionSelection, asked: Asked, *, now: datetime) -> Generated:
    """Return the stacks that a selection means today.

    Args:
        config: pins, overrides and declared stacks; a stack that is declared is taken as it is declared.
        selection: what is wanted.
        asked: answers what has to be asked.
        now: the time, which says what is new.

    Raises:
        ConfigurationError: a selector means no release, everything is excluded, or nothing goes with some versions. The
            message names the selection.
    """
    try:
        return _generate(config, selection, asked, now)
    except ConfigurationError as error:
        raise ConfigurationError(f"selections.{selection.name}: {error.message}", remedy=error.remedy) from error


def _generate(config: MatrixConfig, selection: VersionSelection, asked: Asked, now: datetime) -> Generated:
    listed = {
        name: selected_versions(selection, name, asked, now=now)
        for name in MAIN_PACKAGES
        if selection.selectors_of(name)
    }
    rules = _Rules(selection)
    complete = len(listed) == len(MAIN_PACKAGES)

    def allowed(combination: Combination) -> bool:
        # What the resolver completes is known only afterwards.
        return not complete or rules.allow(_plain_stack(config, listed, combination))

    combinations = combine(
        [it.versions for it in listed.values()], selection.strategy, allowed=allowed if rules.any else lambda _: True
    )
    stacks: dict[str, Stack] = {}
    reasons: dict[str, str] = {}
    for combination in combinations:
        stack = _stack(config, selection, listed, combination, asked)
        if rules.allow(stack):
            stacks.setdefault(stack.key, stack)
            reasons.setdefault(stack.key, _reason(listed, combination, stack))
    if not stacks:
        raise ConfigurationError(
            "every stack is excluded by its conditions.", remedy="Loosen include and exclude of the selection."
        )
    new = {name: set(it.new) for name, it in listed.items()}
    with_news = {stack.key for stack in stacks.values() if any(stack.shown(name) in new[name] for name in new)}
    ordered = sorted(stacks.values(), key=lambda stack: stack.key not in with_news)
    news = tuple(f"{words}." for it in listed.values() for words in it.new.values())
    return Generated(stacks=tuple(ordered), reasons=reasons, news=news, new=frozenset(with_news))


class _Rules:
    """Which stacks the conditions of a selection let through."""

    def __init__(self, selection: VersionSelection) -> None:
        self._include: Sequence[Condition] = tuple(map(parse_condition, selection.include))
        self._exclude: Sequence[Condition] = tuple(map(parse_condition, selection.exclude))
        self.any = bool(self._include or self._exclude)

    def allow(self, stack: Stack) -> bool:
        included = not self._include or any(condition.holds(stack) for condition in self._include)
        return included and not any(condition.holds(stack) for condition in self._exclude)


def _choice(listed: Mapping[str, SelectedVersions], combination: Combination, *, pre: bool) -> Choice:
    """Return a combination as a choice of versions, in which packages without a selector are open."""
    choice = Choice(versions={}, sources={}, open={}, pre=set(MAIN_PACKAGES) if pre else set(), words=[])
    for (name, found), version in zip(listed.items(), combination, strict=True):
        source = found.sources.get(version)
        if source is not None:
            choice.sources[name] = source
        choice.versions[name] = version if source is None else version.removesuffix(source.mark)
    choice.open = {name: open_requirement(name) for name in MAIN_PACKAGES if name not in listed}
    return choice


def _plain_stack(config: MatrixConfig, listed: Mapping[str, SelectedVersions], combination: Combination) -> Stack:
    return config.stack(_choice(listed, combination, pre=False).versions)


def _stack(
    config: MatrixConfig,
    selection: VersionSelection,
    listed: Mapping[str, SelectedVersions],
    combination: Combination,
    asked: Asked,
) -> Stack:
    """Return the stack of a combination, as it is declared where it is."""
    choice = _choice(listed, combination, pre=selection.pre)
    pinned = selection.resolution == PINNED
    stack = stack_of(config, choice, asked, pins=selection.pins, pinned=pinned)
    stack = with_choices(stack, selection.pins, selection.python)
    if not pinned:
        return as_resolved(stack, selection.resolution, asked, selection.pins)[0]
    if selection.python is None and not selection.pins:
        return next((declared for declared in config.declared if _same(declared, stack)), stack)
    return stack


def _same(declared: Stack, stack: Stack) -> bool:
    """Say whether a declared stack is this one, however its versions are written."""
    same = all(Version(getattr(declared, name)) == Version(getattr(stack, name)) for name in MAIN_PACKAGES)
    return same and declared.sources == stack.sources


def _reason(listed: Mapping[str, SelectedVersions], combination: Combination, stack: Stack) -> str:
    """Return where each version comes from: ``transformers latest-minors:3, peft latest, trl by the resolver``."""
    by = {name: found.by[version] for (name, found), version in zip(listed.items(), combination, strict=True)}
    words = [f"{name} {by.get(name, 'by the resolver')}" for name in MAIN_PACKAGES]
    return ", ".join(words) if stack.resolution == PINNED else f"{', '.join(words)}, {stack.resolution}"
