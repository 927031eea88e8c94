"""The stack that a partial choice of versions means.

``harness run --peft 0.19.1`` names one version of three. The rest is completed from what the configuration declares,
because a declared stack is one that people have looked at. Where nothing declared fits, the resolver chooses: what
cannot be installed together is never proposed. What was chosen is said in a sentence or two: a result is only worth
something to a reader who knows which versions made it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from harness.errors import ConfigurationError, UnknownNameError
from harness.matrix.cell import MAIN_PACKAGES, PINNED, PYTHON_PATTERN, Stack
from harness.matrix.choice import (
    Choice,
    Chooser,
    as_resolved,
    listed,
    open_requirement,
    stack_of,
    with_choices,
)
from harness.matrix.config import MatrixConfig
from harness.matrix.selectors import Exact, Latest, LatestPatches, Oldest, Range, Selector
from harness.matrix.sources import SourceSelector
from harness.matrix.too_old import refuse_too_old_choice
from harness.matrix.versions import option_selector, parse_resolution, parse_version


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A complete stack and the sentences that say what was chosen and why."""

    stack: Stack
    sentence: str


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
        ConfigurationError: a given selector is malformed, means several versions or only such that are too old for
            the harness, or nothing goes with it.
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
    for name, selector in asked.items():
        refuse_too_old_choice(name, selector)
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
        choice = _first_choice(asked, chooser(), pre)
        stack = stack_of(config, choice, chooser(), pins=chosen, pinned=how == PINNED)
        sentence = " ".join(choice.words)
    stack = with_choices(stack, chosen, python)
    if how != PINNED:
        stack, more = as_resolved(stack, how, chooser(), chosen)
        sentence = f"{sentence} {more}"
    return Completion(stack=stack, sentence=sentence)


def _first_choice(asked: Mapping[str, Selector], chooser: Chooser, pre: bool) -> Choice:
    """Return what each selector settles by itself, and what it leaves to the resolver."""
    choice = Choice(versions={}, sources={}, open={}, pre=set(MAIN_PACKAGES) if pre else set(), words=[])
    for name in MAIN_PACKAGES:
        match asked.get(name):
            case Exact(version):
                choice.versions[name] = version
            case Latest(within) if within is None:
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
            case Range(specifiers) | Latest(SpecifierSet() as specifiers):
                choice.open[name] = f"{name}{specifiers}"
                if specifiers.prereleases:
                    choice.pre.add(name)
            case None:
                choice.open[name] = open_requirement(name)
    return choice


_KINDS = {"git": "commit", "path": "source tree", "wheel": "wheel"}


def _declared_sentence(stack: Stack, asked: Mapping[str, str]) -> str:
    missing = [name for name in MAIN_PACKAGES if name not in asked]
    if not asked:
        return f"No version was given: {stack.id} is the first declared stack."
    if not missing:
        return f"The given versions are the declared stack {stack.id}."
    chosen = listed([f"{name} {stack.version_of(name)}" for name in missing])
    wanted = listed([f"{name} {stack.version_of(name)}" for name in asked])
    return f"{chosen} complete{'s' if len(missing) == 1 else ''} the first declared stack with {wanted}: {stack.id}."


def _has(stack: Stack, asked: Mapping[str, str]) -> bool:
    """Say whether ``stack`` has the versions asked for; ``5.5`` and ``5.5.0`` are one version (PEP 440)."""
    return all(Version(getattr(stack, name)) == Version(version) for name, version in asked.items())
