"""Versions on the command line: what they mean, one option at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping

from packaging.utils import canonicalize_name
from packaging.version import Version

from harness.errors import ConfigurationError
from harness.matrix.cell import MAIN_PACKAGES, PINNED, Stack, canonical_version, checked_pin_name
from harness.matrix.selectors import Exact, Range, Selector, parse_selector

_RANGES = {"transformers": ">=5.2,<5.6", "peft": ">=0.19,<0.22", "trl": ">=1.4,<1.9"}


def version_help(package: str) -> str:
    """Return what the command line says of the option that selects a package's version."""
    return (
        f"Which {package}: a version, a range as '{_RANGES[package]}' (the newest in it that goes with the rest), "
        f"latest, oldest, git+URL@REF, a source tree (./{package}) or a wheel."
    )


FORMS = "Write a version (5.5.0), a range ('>=5.2,<5.6'), latest or oldest; docs/reference/selectors.md has all forms."
ERA_DAYS = 14
"""Days that ``era`` alone means."""


def option_selector(text: str, option: str) -> Selector:
    """Return the selector that a text on the command line means.

    What ``--transformers``, ``--peft`` and ``--trl`` give comes through here.

    Raises:
        ConfigurationError: it is none; the message names the option.
    """
    try:
        return parse_selector(text)
    except ValueError as error:
        raise ConfigurationError(f"{option}: {error}.".replace("?.", "?"), remedy=FORMS) from None


def parse_resolution(text: str) -> str:
    """Return how what is beside the three packages gets its versions, as a stack says it.

    Raises:
        ConfigurationError: it is none of ``pinned``, ``fresh``, ``era``, ``era-DAYS``.
    """
    if text in {PINNED, "fresh"}:
        return text
    found = re.fullmatch(r"era(?:-(\d{1,4}))?", text)
    if found is None:
        raise ConfigurationError(
            f"--resolution {text!r} is none.",
            remedy="Write pinned, fresh, era, or era-30 for 30 days after the newest.",
        )
    return f"era-{int(found[1] or ERA_DAYS)}"


def parse_version(text: str, option: str) -> str:
    """Return the version that a text on the command line means, as PEP 440 writes it: an exact one.

    What ``--pin`` gives comes through here.

    Args:
        text: what was given.
        option: what it was given to, ``--peft`` or ``--pin torch``.

    Raises:
        ConfigurationError: it is malformed; the message names the option.
    """
    try:
        return canonical_version(text)
    except ValueError as error:
        raise ConfigurationError(f"{option}: {error}", remedy="Write it as PEP 440 has it, as 2.13.0.") from None


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
        raise ConfigurationError(f"--pin {text}: {error}.", remedy="Leave it out, or pin another package.") from None
    return package, parse_version(version, f"--pin {name}")


def require_versions(stack: Stack, given: Mapping[str, str | None]) -> None:
    """Hold the stack of an existing interpreter against the versions that were asked for.

    Args:
        stack: what the interpreter holds.
        given: versions by package; None or absent: any will do.

    Raises:
        ConfigurationError: the interpreter holds another version, or a given one is malformed.
    """
    for name, text in given.items():
        if text is None:
            continue
        held, selector = stack.version_of(name), option_selector(text, f"--{name}")
        if held is None or not _takes(selector, held):
            raise ConfigurationError(
                f"--{name} {text}: the interpreter given by --python has {name} {held}.",
                remedy=f"Leave out --{name}, or leave out --python.",
            )


def _takes(selector: Selector, held: str) -> bool:
    """Say whether a selector takes a version that is there; one that asks an index or a place takes none."""
    match selector:
        case Exact(version):
            return Version(version) == Version(held)
        case Range(specifiers):
            return specifiers.contains(held, prereleases=True)
    return False
