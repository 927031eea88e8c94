"""The stack that a partial choice of versions means.

``harness run --peft 0.19.1`` names one version of three. The rest is completed from what the configuration declares,
because a declared stack is one that people have looked at. Where nothing declared fits, the resolver chooses: what
cannot be installed together is never proposed. What was chosen is said in a sentence or two: a result is only worth
something to a reader who knows which versions made it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Protocol

from packaging.version import Version

from harness.contract.supported import OLDEST
from harness.errors import ConfigurationError, UnknownNameError
from harness.matrix.cell import MAIN_PACKAGES, PINNED, PYTHON_PATTERN, Stack
from harness.matrix.config import MatrixConfig
from harness.matrix.selectors import Exact, Latest, LatestPatches, Oldest, Range, Selector
from harness.matrix.sources import Source, SourceSelector
from harness.matrix.versions import option_selector, parse_resolution, parse_version


class Chooser(Protocol):
    """What has to be asked of indexes, repositories and the resolver."""

    def newest(self, package: str, *, pre: bool) -> str:
        """Return the newest release of a package."""
        ...

    def oldest(self, package: str, *, pre: bool) -> str:
        """Return the oldest release of a package that the harness supports."""
        ...

    def choose(self, requirements: Sequence[str]) -> Mapping[str, str]:
        """Return the versions that the resolver takes; ``ConfigurationError`` where there are none."""
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


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A complete stack and the sentences that say what was chosen and why."""

    stack: Stack
    sentence: str


@dataclass(kw_only=True)
class _Choice:
    """Versions chosen so far, what they are built from, and what is still open, as requirements."""

    versions: dict[str, str]
    sources: dict[str, Source]
    open: dict[str, str]
    words: list[str]


def complete_stack(
    config: MatrixConfig,
    given: Mapping[str, str | None],
    *,
    chooser: Callable[[], Chooser],
    pins: Mapping[str, str] | None = None,
    python: str | None = None,
    pre: bool = False,
    resolution: str = PINNED,
) -> Completion:
    """Choose the versions that were not given.

    They are those of the first declared stack that has the given ones, where these are exact versions; else those that
    the resolver takes beside them.

    Args:
        config: declares stacks and the pins of everything else.
        given: selectors by package (transformers, peft, trl); None or absent: to be chosen.
        chooser: opens what answers questions about releases; called only if there is one.
        pins: other packages pinned on the command line. Those that differ from the configuration's choice become the
            stack's ``extra_pins``.
        python: the environment's ``major.minor`` version; None leaves it to the declared stack.
        pre: whether pre-releases count.
        resolution: ``pinned``, ``fresh``, ``era`` or ``era-DAYS``.

    Raises:
        UnknownNameError: ``given`` names another package than the three.
        ConfigurationError: a given selector is malformed, means several versions, or nothing goes with it.
    """
    for package in given:
        if package not in MAIN_PACKAGES:
            raise UnknownNameError("package", package, MAIN_PACKAGES)
    how, chosen = (
        parse_resolution(resolution),
        {name: parse_version(v, f"--pin {name}") for name, v in (pins or {}).items()},
    )
    if python is not None and re.fullmatch(PYTHON_PATTERN, python) is None:
        raise ConfigurationError(
            f"--python-version {python!r} is not a Python 3 version.", remedy="Write major.minor, as 3.12."
        )
    asked = {
        name: option_selector(text, f"--{name}") for name in MAIN_PACKAGES if (text := given.get(name)) is not None
    }
    exact = {name: selector.version for name, selector in asked.items() if isinstance(selector, Exact)}
    declared = (
        next((stack for stack in config.declared if _has(stack, exact)), None) if len(exact) == len(asked) else None
    )
    if declared is not None:
        stack, sentence = declared, _declared_sentence(declared, exact)
    elif len(exact) == len(MAIN_PACKAGES):
        stack = config.stack(exact)
        sentence = f"All three versions were given; no declared stack is {stack.id}."
    else:
        settled = chosen if how != PINNED else {**_settled(config), **chosen}
        choice = _choose(asked, chooser(), settled, pre)
        stack = config.stack(choice.versions).model_copy(update={"sources": choice.sources})
        sentence = " ".join(choice.words)
        if choice.open and how == PINNED and (whole := _with_choices(stack, chosen, python)).pins != settled:
            # The versions decided some other pins (overrides): what is proposed has to go together with those.
            chooser().choose(whole.requirements)
    stack = _with_choices(stack, chosen, python)
    if how != PINNED:
        stack, more = _as_resolved(stack, how, chooser())
        sentence = f"{sentence} {more}"
    return Completion(stack=stack, sentence=sentence)


def _settled(config: MatrixConfig) -> dict[str, str]:
    """Return the pins that no choice of versions changes."""
    moved = {name for override in config.overrides for name in override.pins}
    return {name: version for name, version in config.pins.items() if name not in moved}


def _choose(asked: Mapping[str, Selector], chooser: Chooser, pins: Mapping[str, str], pre: bool) -> _Choice:
    """Return what indexes and resolver make of what was asked for, with the sentences about it."""
    choice = _first_choice(asked, chooser, pre)
    if choice.open:
        wanted = {name: f"{name}=={version}" for name, version in {**pins, **choice.versions}.items()}
        wanted |= {name: f"{name} @ {source.location}" for name, source in choice.sources.items()}
        found = chooser.choose([*wanted.values(), *choice.open.values()])
        fixed = [f"{name} {choice.versions[name]}" for name in MAIN_PACKAGES if name in choice.versions]
        choice.versions |= {name: Version(found[name]).public for name in choice.open}
        taken = [f"{name} {choice.versions[name]}" for name in MAIN_PACKAGES if name in choice.open]
        verb = "is" if len(taken) == 1 else "are"
        choice.words.append(f"{_and(taken)} {verb} what the resolver takes{f' beside {_and(fixed)}' if fixed else ''}.")
    return choice


def _first_choice(asked: Mapping[str, Selector], chooser: Chooser, pre: bool) -> _Choice:
    """Return what each selector settles by itself, and what it leaves to the resolver."""
    choice = _Choice(versions={}, sources={}, open={}, words=[])
    # A bound that is a pre-release lets those of its package in, and of no other (PEP 440, which the resolver follows).
    bound = ",>=0.dev0" if pre else ""
    for name in MAIN_PACKAGES:
        match asked.get(name):
            case Exact(version):
                choice.versions[name] = version
            case Latest():
                choice.versions[name] = chooser.newest(name, pre=pre)
                choice.words.append(f"{name} {choice.versions[name]} is the newest release.")
            case Oldest():
                choice.versions[name] = chooser.oldest(name, pre=pre)
                choice.words.append(f"{name} {choice.versions[name]} is the oldest release that the harness supports.")
            case SourceSelector() as source:
                choice.versions[name], built = chooser.build(name, source)
                choice.sources[name] = built
                choice.words.append(f"{name} {choice.versions[name]}{built.mark} is built from a {_KINDS[built.kind]}.")
            case LatestPatches():
                raise ConfigurationError(
                    f"--{name} selects several releases, and one cell runs on one stack.",
                    remedy="Name it in a [[selections]] of matrix.toml and run a profile, or use latest here.",
                )
            case Range(specifiers):
                choice.open[name] = f"{name}{specifiers}{bound}"
            case None:
                choice.open[name] = f"{name}>={OLDEST[name]}{bound}"
    return choice


_KINDS = {"git": "commit", "path": "source tree", "wheel": "wheel"}


def _as_resolved(stack: Stack, how: str, chooser: Chooser) -> tuple[Stack, str]:
    """Return the stack with nothing but the three pinned, and the sentence that says what the rest will be.

    Raises:
        ConfigurationError: no index says when one of the three was uploaded.
    """
    unpinned = tuple(sorted(set(stack.pins) - set(stack.extra_pins)))
    pins = {name: stack.pins[name] for name in stack.extra_pins}
    if how == "fresh":
        day, words = chooser.today(), "Everything else is what an installation gives today."
    else:
        days = int(how.removeprefix("era-"))
        times = chooser.uploaded({name: getattr(stack, name) for name in MAIN_PACKAGES if name not in stack.sources})
        known = [time for time in times.values() if time is not None]
        if len(known) < len(MAIN_PACKAGES):
            unknown = [name for name in MAIN_PACKAGES if times.get(name) is None]
            raise ConfigurationError(
                f"No index says when {_and(unknown)} {'was' if len(unknown) == 1 else 'were'} uploaded, so the era of "
                f"{stack.id} is not known.",
                remedy="Use --resolution fresh, or an index that says it (PEP 700).",
            )
        day = max(known).date() + timedelta(days=days)
        words = f"Nothing is newer than {day}, {days} days after the newest of the three."
    changes = {"pins": pins, "unpinned": unpinned, "resolution": how, "as_of": day}
    return stack.model_copy(update=changes), words


def _has(stack: Stack, asked: Mapping[str, str]) -> bool:
    """Say whether ``stack`` has the versions asked for; ``5.5`` and ``5.5.0`` are one version (PEP 440)."""
    return all(Version(getattr(stack, name)) == Version(version) for name, version in asked.items())


def _with_choices(stack: Stack, chosen: Mapping[str, str], python: str | None) -> Stack:
    extra = tuple(sorted(name for name, version in chosen.items() if stack.pins.get(name) != version))
    changes: dict[str, object] = {"pins": {**stack.pins, **chosen}, "extra_pins": extra}
    return stack.model_copy(update=changes | ({"python": python} if python is not None else {}))


def _declared_sentence(stack: Stack, asked: Mapping[str, str]) -> str:
    missing = [name for name in MAIN_PACKAGES if name not in asked]
    if not asked:
        return f"No version was given: {stack.id} is the first declared stack."
    if not missing:
        return f"The given versions are the declared stack {stack.id}."
    chosen = _and([f"{name} {stack.version_of(name)}" for name in missing])
    wanted = _and([f"{name} {stack.version_of(name)}" for name in asked])
    return f"{chosen} complete{'s' if len(missing) == 1 else ''} the first declared stack with {wanted}: {stack.id}."


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
