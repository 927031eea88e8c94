"""Choosing versions: what is settled, what the resolver takes beside it, and what is installed beside the three.

Nothing is asked here but of a ``Chooser``, which is handed in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Protocol

from packaging.version import Version

from harness.contract.supported import OLDEST
from harness.errors import ConfigurationError
from harness.matrix.cell import MAIN_PACKAGES, Stack
from harness.matrix.config import MatrixConfig
from harness.matrix.sources import Source, SourceSelector


class Chooser(Protocol):
    """What has to be asked of indexes, repositories and the resolver."""

    def newest(self, package: str, *, pre: bool) -> str:
        """Return the newest release of a package."""
        ...

    def oldest(self, package: str, *, pre: bool) -> str:
        """Return the oldest release of a package that the harness supports."""
        ...

    def choose(self, requirements: Sequence[str], *, pre: Collection[str]) -> Mapping[str, str]:
        """Return the versions that the resolver takes; ``ConfigurationError`` where there are none.

        Pre-releases count for the packages in ``pre``, and where one is pinned.
        """
        ...

    def uploaded(self, versions: Mapping[str, str]) -> Mapping[str, datetime | None]:
        """Return when each version was uploaded; None where no index says."""
        ...

    def build(self, package: str, selector: SourceSelector) -> tuple[str, Source]:
        """Return the version of what no index has, and what it is built from."""
        ...

    def today(self) -> date:
        """Return the day (UTC)."""
        ...


@dataclass(kw_only=True)
class Choice:
    """Versions chosen so far.

    Attributes:
        versions: by package.
        sources: what those that no index has are built from.
        open: what the resolver is to choose, as a requirement by package.
        pre: the packages whose pre-releases count in that.
        words: sentences about what was chosen.
    """

    versions: dict[str, str]
    sources: dict[str, Source]
    open: dict[str, str]
    pre: set[str]
    words: list[str]


def stack_of(
    config: MatrixConfig,
    choice: Choice,
    chooser: Chooser,
    *,
    pins: Mapping[str, str] | None = None,
    pinned: bool = True,
) -> Stack:
    """Return the stack of a choice, with what is open in it chosen by the resolver; the choice has it afterwards.

    The caller's own pins decide what is chosen and do not stand in the stack yet.

    Args:
        config: its pins and overrides.
        choice: the versions.
        chooser: asks the resolver; not asked where nothing is open.
        pins: other packages that the caller pins.
        pinned: whether the configuration's pins will hold for the stack.

    Raises:
        ConfigurationError: nothing goes with the versions.
    """
    settled = {**(_settled(config) if pinned else {}), **(pins or {})}
    proposed = bool(choice.open)
    if proposed:
        _fill(choice, chooser, settled)
    stack = config.stack(choice.versions).model_copy(update={"sources": choice.sources})
    whole = with_choices(stack, pins or {}, None)
    if proposed and pinned and whole.pins != settled:
        # The versions decided some other pins (overrides): what is proposed has to go together with those.
        chooser.choose(whole.requirements, pre=())
    return stack


def _settled(config: MatrixConfig) -> dict[str, str]:
    """Return the pins that no choice of versions changes."""
    moved = {name for override in config.overrides for name in override.pins}
    return {name: version for name, version in config.pins.items() if name not in moved}


def _fill(choice: Choice, chooser: Chooser, pins: Mapping[str, str]) -> None:
    """Let the resolver choose what is open, beside what is chosen already and some pins."""
    wanted = {name: f"{name}=={version}" for name, version in {**pins, **choice.versions}.items()}
    wanted |= {name: f"{name} @ {source.location}" for name, source in choice.sources.items()}
    found = chooser.choose([*wanted.values(), *choice.open.values()], pre=choice.pre)
    fixed = [f"{name} {choice.versions[name]}" for name in MAIN_PACKAGES if name in choice.versions]
    choice.versions |= {name: Version(found[name]).public for name in choice.open}
    taken = [f"{name} {choice.versions[name]}" for name in MAIN_PACKAGES if name in choice.open]
    verb = "is" if len(taken) == 1 else "are"
    choice.words.append(f"{listed(taken)} {verb} what the resolver takes{f' beside {listed(fixed)}' if fixed else ''}.")


def open_requirement(package: str) -> str:
    """Return the requirement that leaves a package's version to the resolver."""
    return f"{package}>={OLDEST[package]}"


def with_choices(stack: Stack, chosen: Mapping[str, str], python: str | None) -> Stack:
    """Return a stack with the pins and the interpreter that a command line chooses; what differs shows in ids."""
    extra = tuple(sorted(name for name, version in chosen.items() if stack.pins.get(name) != version))
    changes: dict[str, object] = {"pins": {**stack.pins, **chosen}, "extra_pins": extra}
    return stack.model_copy(update=changes | ({"python": python} if python is not None else {}))


def as_resolved(stack: Stack, how: str, chooser: Chooser, pins: Mapping[str, str]) -> tuple[Stack, str]:
    """Return the stack with only the three and ``pins`` pinned, and the sentence that says what the rest will be.

    Raises:
        ConfigurationError: no index says when one of the three was uploaded.
    """
    unpinned = tuple(sorted(set(stack.pins) - set(pins)))
    if how == "fresh":
        day, words = chooser.today(), "Everything else is what an installation gives today."
    else:
        days = int(how.removeprefix("era-"))
        times = chooser.uploaded({name: getattr(stack, name) for name in MAIN_PACKAGES if name not in stack.sources})
        known = [time for time in times.values() if time is not None]
        if len(known) < len(MAIN_PACKAGES):
            unknown = [name for name in MAIN_PACKAGES if times.get(name) is None]
            raise ConfigurationError(
                f"No index says when {listed(unknown)} {'was' if len(unknown) == 1 else 'were'} uploaded, so "
                f"the era of {stack.id} is not known.",
                remedy="Use --resolution fresh, or an index that says it (PEP 700).",
            )
        day = max(known).date() + timedelta(days=days)
        words = f"Nothing is newer than {day}, {days} days after the newest of the three."
    changes = {"pins": dict(pins), "extra_pins": tuple(sorted(pins)), "unpinned": unpinned}
    return stack.model_copy(update={**changes, "resolution": how, "as_of": day}), words


def listed(names: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
