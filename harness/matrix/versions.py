"""Versions on the command line: pins, and the stack that a partial choice means.

``harness run --peft 0.19.1`` names one version of three. The rest is completed from what the configuration declares,
because a declared stack is one that people have looked at. Where nothing declared fits, the newest releases are taken.
What was chosen is said in one sentence: a result is only worth something to a reader who knows which versions made it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from packaging.utils import canonicalize_name
from packaging.version import Version

from harness.errors import ConfigurationError, UnknownNameError
from harness.matrix.cell import MAIN_PACKAGES, PYTHON_PATTERN, Stack, canonical_version, checked_pin_name
from harness.matrix.config import MatrixConfig


def version_help(package: str) -> str:
    """Return what the command line says of the option that selects a package's version."""
    return f"Exact version of {package}."


def parse_version(text: str, option: str) -> str:
    """Return the version that a text on the command line means, as PEP 440 writes it: an exact one.

    What ``--transformers``, ``--peft``, ``--trl`` and ``--pin`` give comes through here. ``--python-version`` and the
    versions of ``matrix.toml`` do not.

    Args:
        text: what was given.
        option: what it was given to, ``--peft`` or ``--pin torch``.

    Raises:
        ConfigurationError: it is malformed; the message names the option.
    """
    try:
        return canonical_version(text)
    except ValueError as error:
        raise ConfigurationError(f"{option}: {error}") from None


def parse_pin(text: str) -> tuple[str, str]:
    """Parse ``--pin torch==2.12.0`` into the package's canonical name and version.

    Raises:
        ConfigurationError: it is not an exact pin, or pins one of the three packages that have options of their own.
    """
    name, separator, version = (piece.strip() for piece in text.partition("=="))
    if not separator or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigurationError(f"--pin {text!r} is not an exact pin.", remedy="Write it as --pin torch==2.13.0.")
    package = canonicalize_name(name)
    if package in MAIN_PACKAGES:
        raise ConfigurationError(
            f"--pin {text}: {package} has an option of its own.", remedy=f"Use --{package} {version}."
        )
    try:
        checked_pin_name(package)
    except ValueError as error:
        raise ConfigurationError(f"--pin {text}: {error}.") from None
    return package, parse_version(version, f"--pin {name}")


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A complete stack and the sentence that says what was chosen and why."""

    stack: Stack
    sentence: str


def complete_stack(
    config: MatrixConfig,
    given: Mapping[str, str | None],
    *,
    newest: Callable[[str], str],
    pins: Mapping[str, str] | None = None,
    python: str | None = None,
) -> Completion:
    """Choose the versions that were not given.

    They are those of the first declared stack that has the given ones, else the newest.

    Args:
        config: declares stacks and the pins of everything else.
        given: versions by package (transformers, peft, trl); None or absent: to be chosen.
        newest: returns the newest release of a package; called only for packages that no declared stack settles.
        pins: other packages pinned on the command line. Those that differ from the configuration's choice become the
            stack's ``extra_pins``.
        python: the environment's ``major.minor`` version; None leaves it to the declared stack.

    Raises:
        UnknownNameError: ``given`` names another package than the three.
        ConfigurationError: a given version is malformed.
    """
    for package in given:
        if package not in MAIN_PACKAGES:
            raise UnknownNameError("package", package, MAIN_PACKAGES)
    asked = {name: parse_version(text, f"--{name}") for name in MAIN_PACKAGES if (text := given.get(name)) is not None}
    missing = [name for name in MAIN_PACKAGES if name not in asked]
    declared = next((stack for stack in config.declared if _has(stack, asked)), None)
    if declared is not None:
        stack = declared
        sentence = _declared_sentence(stack, asked, missing)
    else:
        stack = config.stack({**asked, **{name: newest(name) for name in missing}})
        sentence = _newest_sentence(stack, asked, missing)
    return Completion(stack=_with_choices(stack, pins or {}, python), sentence=sentence)


def require_versions(stack: Stack, given: Mapping[str, str | None]) -> None:
    """Hold the stack of an existing interpreter against the versions that were asked for.

    Args:
        stack: what the interpreter holds.
        given: versions by package; None or absent: any will do.

    Raises:
        ConfigurationError: the interpreter holds another version, or a given one is malformed.
    """
    for name, text in given.items():
        held = stack.version_of(name)
        if text is not None and (held is None or Version(parse_version(text, f"--{name}")) != Version(held)):
            raise ConfigurationError(
                f"--{name} {text}: the interpreter given by --python has {name} {held}.",
                remedy=f"Leave out --{name}, or leave out --python.",
            )


def _has(stack: Stack, asked: Mapping[str, str]) -> bool:
    """Say whether ``stack`` has the versions asked for; ``5.5`` and ``5.5.0`` are one version (PEP 440)."""
    return all(Version(getattr(stack, name)) == Version(version) for name, version in asked.items())


def _with_choices(stack: Stack, pins: Mapping[str, str], python: str | None) -> Stack:
    chosen = {name: parse_version(version, f"--pin {name}") for name, version in pins.items()}
    extra = tuple(sorted(name for name, version in chosen.items() if stack.pins.get(name) != version))
    if python is not None and re.fullmatch(PYTHON_PATTERN, python) is None:
        raise ConfigurationError(
            f"--python-version {python!r} is not a Python 3 version.", remedy="Write major.minor, as 3.12."
        )
    fields = stack.model_dump() | {"pins": {**stack.pins, **chosen}, "extra_pins": extra}
    return Stack.model_validate(fields | ({"python": python} if python is not None else {}))


def _declared_sentence(stack: Stack, asked: Mapping[str, str], missing: list[str]) -> str:
    if not asked:
        return f"No version was given: {stack.id} is the first declared stack."
    if not missing:
        return f"The given versions are the declared stack {stack.id}."
    chosen = _and([f"{name} {stack.version_of(name)}" for name in missing])
    wanted = _and([f"{name} {stack.version_of(name)}" for name in asked])
    return f"{chosen} complete{'s' if len(missing) == 1 else ''} the first declared stack with {wanted}: {stack.id}."


def _newest_sentence(stack: Stack, asked: Mapping[str, str], missing: list[str]) -> str:
    if not missing:
        return f"All three versions were given; no declared stack is {stack.id}."
    chosen = _and([f"{name} {stack.version_of(name)}" for name in missing])
    wanted = _and([f"{name} {version}" for name, version in asked.items()])
    verb = "is the newest release" if len(missing) == 1 else "are the newest releases"
    return f"No declared stack has {wanted}: {chosen} {verb}."


def _and(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
