"""Stacks that the harness itself cannot work with: refused before anything is made, in those words. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from packaging.version import Version

from harness.contract.supported import OLDEST
from harness.errors import ConfigurationError
from harness.matrix.cell import Stack
from harness.matrix.releases import supported


def refuse_too_old(stacks: Iterable[Stack]) -> None:
    """Refuse stacks with a release that the harness cannot work with: whatever it said of them would be about itself.

    Raises:
        ConfigurationError: there is one.
    """
    for stack in stacks:
        for package, oldest in OLDEST.items():
            version = stack.version_of(package)
            if version is not None and not supported(package, Version(version)):
                raise ConfigurationError(
                    f"{package} {version} is too old for the harness, which works with {package} {oldest} and later.",
                    remedy=f"Give {package} {oldest} or a later release.",
                )
