"""Stacks that the harness itself cannot work with: refused before anything is made, in those words. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from packaging.specifiers import Specifier, SpecifierSet
from packaging.version import Version

from harness.contract.supported import OLDEST
from harness.errors import ConfigurationError
from harness.matrix.cell import Stack
from harness.matrix.releases import supported
from harness.matrix.selectors import Exact, Latest, Range, Selector


def refuse_too_old(stacks: Iterable[Stack]) -> None:
    """Refuse stacks with a release that the harness cannot work with: whatever it said of them would be about itself.

    Raises:
        ConfigurationError: there is one.
    """
    for stack in stacks:
        for package in OLDEST:
            version = stack.version_of(package)
            if version is not None and not supported(package, Version(version)):
                raise _too_old(package, version)


def refuse_too_old_choice(package: str, selector: Selector) -> None:
    """Refuse what selects nothing but releases that are too old, before indexes or the resolver are asked.

    Args:
        package: one of the three.
        selector: what was given for it.

    Raises:
        ConfigurationError: every release that it takes is too old for the harness.
    """
    match selector:
        case Exact(version) if not supported(package, Version(version)):
            raise _too_old(package, version)
        case Range(specifiers) | Latest(SpecifierSet() as specifiers) if any(
            _ends_before(specifier, Version(OLDEST[package])) for specifier in specifiers
        ):
            raise _too_old(package, str(specifiers))


def _ends_before(specifier: Specifier, oldest: Version) -> bool:
    """Say whether all that a clause of a range takes lies before a release.

    A clause with an upper end takes one span of versions: it ends before a release that it does not take, unless it
    begins after it.
    """
    if specifier.operator in {"<", "<="}:
        return not specifier.contains(oldest, prereleases=True)
    if specifier.operator in {"==", "~="}:
        begins = Version(specifier.version.removesuffix(".*"))
        return begins < oldest and not specifier.contains(oldest, prereleases=True)
    return False


def _too_old(package: str, version: str) -> ConfigurationError:
    oldest = OLDEST[package]
    return ConfigurationError(
        f"{package} {version} is too old for the harness, which works with {package} {oldest} and later.",
        remedy=f"Give {package} {oldest} or a later release, as --{package} '>={oldest}' or --{package} oldest.",
    )
