"""Conditions on versions, as expectations and overrides name the stacks they are about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from pydantic import AfterValidator

from harness.matrix.cell import Stack

_PART = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)?\s*(?P<specifier>(?:~=|==(?!=)|!=|<=|>=|<|>).*)")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A condition on versions: every package lies in its set.

    ``specifiers`` maps canonical package names to sets of versions, as PEP 440 defines them.
    """

    specifiers: Mapping[str, SpecifierSet]

    def holds(self, stack: Stack) -> bool:
        """Say whether ``stack`` pins every package named here to a version in its set.

        A package that it does not pin is outside.
        """
        versions = {package: stack.version_of(package) for package in self.specifiers}
        return all(
            version is not None and self.specifiers[package].contains(version, prereleases=True)
            for package, version in versions.items()
        )


def parse_condition(text: str) -> Condition:
    """Parse ``transformers>=5.6.2,<5.9, peft==0.19.1``: a package's name may be left out where it is the one before.

    Raises:
        ValueError: the text is no such condition.
    """
    specifiers: dict[str, SpecifierSet] = {}
    name: str | None = None
    for part in (piece.strip() for piece in text.split(",")):
        found = _PART.fullmatch(part)
        if found is None or not (name := canonicalize_name(found["name"]) if found["name"] else name):
            raise ValueError(f"{part!r} is not a condition on a version, such as 'peft>=0.19.1'")
        try:
            specifiers[name] = specifiers.get(name, SpecifierSet()) & SpecifierSet(found["specifier"])
        except InvalidSpecifier:
            raise ValueError(f"{found['specifier']!r} in {text!r} is not a version specifier (PEP 440)") from None
    return Condition(specifiers=specifiers)


def _checked(text: str) -> str:
    parse_condition(text)
    return text


ConditionText = Annotated[str, AfterValidator(_checked)]
"""A condition as it is written in a configuration file."""
