"""Stacks and cells, and the one identifier that selects, logs, names files and reproduces a cell everywhere.

``qwen3_moe/lora@tf5.5.0-peft0.19.1-trl0.25.1`` is the family, the recipe and the stack. Whatever is not the default is
appended in alphabetical order: ``…+dtype=bf16+geometry=square-down``. Ids are plain strings for shells, file systems
and ``fnmatch``. They hold no character that any of the three treats specially. Only globs that a user writes do.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from harness.contract.cell_fields import DEFAULTS, MEANINGS, NAME_PATTERN, SEEDS, CellFields


def canonical_version(text: str) -> str:
    """Return the version as PEP 440 writes it; a malformed one is a ``ValueError`` that pydantic reports by key."""
    try:
        return str(Version(text))
    except InvalidVersion:
        numbers = re.search(r"\d+([.,_\s]+\d+)*", text)
        near = f"; did you mean {'.'.join(re.findall(r'[0-9]+', numbers[0]))!r}?" if numbers else ", such as '5.5.0'"
        raise ValueError(f"{text!r} is not a version (PEP 440){near}") from None


VersionText = Annotated[str, AfterValidator(canonical_version)]

MAIN_PACKAGES = ("transformers", "peft", "trl")
"""The three packages whose versions name a stack."""


class Stack(BaseModel):
    """One pinned set of package versions.

    ``pins`` holds every other package that is pinned (torch, bitsandbytes, accelerate, datasets, …): name to version.
    ``extra_pins`` names those that differ from the configuration's own choice for this stack. An id shows them.
    ``python`` is a ``major.minor`` version for the environment, or None for the interpreter that runs the harness.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    transformers: VersionText
    peft: VersionText
    trl: VersionText
    pins: dict[str, VersionText] = Field(default_factory=dict)
    extra_pins: tuple[str, ...] = ()
    python: str | None = Field(default=None, pattern=r"^3\.\d+$")

    @property
    def id(self) -> str:
        """The stack's identifier, ``tf5.5.0-peft0.19.1-trl0.25.1``; other pins are appended to the ids of cells."""
        return f"tf{self.transformers}-peft{self.peft}-trl{self.trl}"

    @property
    def requirements(self) -> tuple[str, ...]:
        """Exact requirements, sorted: ``("accelerate==1.15.0", …)``."""
        pins = {**self.pins, **{name: getattr(self, name) for name in MAIN_PACKAGES}}
        return tuple(f"{name}=={version}" for name, version in sorted(pins.items()))

    def version_of(self, package: str) -> str | None:
        """Return the pinned version of ``package``, or None when this stack does not pin it."""
        if package in MAIN_PACKAGES:
            return str(getattr(self, package))
        return self.pins.get(package)


def _describe(schema: dict[str, Any]) -> None:
    """Give the JSON Schema of a cell the meaning of each field."""
    for name, meaning in MEANINGS.items():
        schema["properties"][name]["description"] = meaning


class Cell(BaseModel, CellFields, frozen=True):
    """One (stack, family, recipe) and whatever about it is not the default; the fields are ``CellFields``'."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_describe)

    stack: Stack
    unmanaged: bool = False
    """True when the cell runs in an interpreter that the user gave instead of an environment of ours."""

    @field_validator(*MEANINGS)
    @classmethod
    def _harmless(cls, value: object) -> object:
        """Ids are plain strings for shells, file systems and globs, so every text in them must be."""
        if isinstance(value, str) and re.fullmatch(NAME_PATTERN, value) is None:
            raise ValueError(f"{value!r} is not a name of lower case letters, digits, '_', '-' and '.'")
        return value

    @field_validator("seed")
    @classmethod
    def _every_library_takes_it(cls, value: int) -> int:
        if not 0 <= value < SEEDS:
            raise ValueError(f"{value}: a seed lies between 0 and {SEEDS - 1}")
        return value

    @property
    def id(self) -> str:
        """The cell's identifier."""
        options = {name: getattr(self, name) for name, default in DEFAULTS.items() if getattr(self, name) != default}
        options |= {name: self.stack.pins[name] for name in self.stack.extra_pins}
        if self.stack.python is not None:
            options["python"] = self.stack.python
        if self.unmanaged:
            options["unmanaged"] = "yes"
        suffix = "".join(f"+{name.replace('_', '-')}={value}" for name, value in sorted(options.items()))
        return f"{self.family}/{self.recipe}@{self.stack.id}{suffix}"

    @property
    def file_stem(self) -> str:
        """The id without the family.

        A result is stored as ``<out>/cells/<family>/<file_stem>.json``, the log beside it.
        """
        return self.id.split("/", 1)[1]

    @property
    def reproduce(self) -> str:
        """The one command line that runs exactly this cell."""
        words = ["harness run", f"--model {self.family}", f"--recipe {self.recipe}"]
        words += [f"--{name} {getattr(self.stack, name)}" for name in MAIN_PACKAGES]
        words += [f"--pin {name}=={self.stack.pins[name]}" for name in self.stack.extra_pins]
        if self.stack.python is not None:
            words.append(f"--python-version {self.stack.python}")
        for name, default in DEFAULTS.items():
            value = getattr(self, name)
            if value != default or name == "device":
                words.append(f"--{name.replace('_', '-')} {value}")
        if self.unmanaged:
            words.append("--python PATH")
        return " ".join(words)
