"""Stacks and cells, and the one identifier that selects, logs, names files and reproduces a cell everywhere.

``qwen3_moe/lora@tf5.5.0-peft0.19.1-trl0.25.1`` is the family, the recipe and the stack. Whatever is not the default is
appended in alphabetical order: ``…+dtype=bf16+geometry=square-down``. Ids are plain strings for shells, file systems
and ``fnmatch``. They hold no character that any of the three treats specially. Only globs that a user writes do.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Self

from packaging.utils import canonicalize_name, is_normalized_name
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from harness.contract.cell_fields import DEFAULTS, MEANINGS, NAME_PATTERN, SEEDS, CellFields
from harness.matrix.sources import Source


def canonical_version(text: str) -> str:
    """Return the version as PEP 440 writes it; a malformed one is a ``ValueError`` that pydantic reports by key.

    One with an epoch (``1!2.0``) is refused: no package under test has one, and a shell reads the ``!``.
    """
    try:
        version = Version(text)
    except InvalidVersion:
        numbers = re.search(r"\d+([.,_\s]+\d+)*", text)
        near = f"; did you mean {'.'.join(re.findall(r'[0-9]+', numbers[0]))!r}?" if numbers else ", such as '5.5.0'"
        raise ValueError(f"{text!r} is not a version (PEP 440){near}") from None
    except ValueError:  # more digits than Python makes a number of
        raise ValueError(f"a version of {len(text)} characters is none") from None
    if version.epoch:
        raise ValueError(f"{text!r} has an epoch, which no version of a stack may have")
    return str(version)


VersionText = Annotated[str, AfterValidator(canonical_version)]

MAIN_PACKAGES = ("transformers", "peft", "trl")
"""The three packages whose versions name a stack."""

RESERVED = frozenset(name.replace("_", "-") for name in (*MEANINGS, "python", "resolution", "unmanaged"))
"""What an id names beside pins, as it writes it: a package of such a name would hide it."""

PYTHON_PATTERN = r"^3\.[0-9]+$"
"""A ``major.minor`` version of Python."""

PINNED = "pinned"
RESOLUTION_PATTERN = r"^(pinned|fresh|era-[0-9]{1,4})$"
"""How what is beside the three packages gets its versions: by pins, as today gives them, or as they were then."""


def checked_pin_name(name: str) -> str:
    """Return the name of a package that a stack may pin beside the three; another is a ``ValueError``."""
    if name in MAIN_PACKAGES:
        raise ValueError(f"{name} is a key of the stack itself, not one of its other pins")
    if name in RESERVED:
        raise ValueError(f"{name} is what a cell's id calls something else, so no package of that name can be pinned")
    if not is_normalized_name(name):
        right = canonicalize_name(name)
        raise ValueError(f"write the package's name as {right!r}" if is_normalized_name(right) else "no package's name")
    return name


PinName = Annotated[str, AfterValidator(checked_pin_name)]


class Stack(BaseModel):
    """One pinned set of package versions.

    ``pins`` holds every other package that is pinned (torch, bitsandbytes, accelerate, datasets, …): name to version.
    ``extra_pins`` names those that differ from the configuration's own choice for this stack. An id shows them.
    ``python`` is a ``major.minor`` version for the environment, or None for the interpreter that runs the harness.
    ``sources`` says which of the three packages come from no index, and what they are built from.
    ``resolution`` is ``pinned``, ``fresh`` (what an installation gives today) or ``era-N`` (nothing newer than N days
    after the newest of the three). In the latter two ``unpinned`` are installed beside the three in whatever version
    the resolver takes, and ``as_of`` is the day that it is asked about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    transformers: VersionText
    peft: VersionText
    trl: VersionText
    pins: dict[PinName, VersionText] = Field(default_factory=dict)
    extra_pins: tuple[PinName, ...] = ()
    python: str | None = Field(default=None, pattern=PYTHON_PATTERN)
    sources: dict[str, Source] = Field(default_factory=dict)
    resolution: str = Field(default=PINNED, pattern=RESOLUTION_PATTERN)
    unpinned: tuple[PinName, ...] = ()
    as_of: date | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if unknown := [name for name in self.extra_pins if name not in self.pins]:
            raise ValueError(f"extra_pins without a version: {', '.join(unknown)}")
        if foreign := [name for name in self.sources if name not in MAIN_PACKAGES]:
            raise ValueError(f"sources of what is none of the three packages: {', '.join(foreign)}")
        if (self.resolution == PINNED) != (self.as_of is None):
            raise ValueError(f"resolution {self.resolution!r} {'has no' if self.as_of else 'needs a'} day")
        return self

    @property
    def id(self) -> str:
        """The stack's identifier, ``tf5.5.0-peft0.19.1-trl0.25.1``; other pins are appended to the ids of cells.

        A package from no index has its mark behind its version: ``tf5.25.0.dev0.git.1a2b3c4d-peft0.21.2-trl1.16.0``.
        """
        return "-".join(
            f"{short}{self.shown(name)}" for short, name in zip(("tf", "peft", "trl"), MAIN_PACKAGES, strict=True)
        )

    @property
    def key(self) -> str:
        """What tells two stacks apart, every pin and the Python included: an id names three packages only."""
        return self.model_dump_json()

    def shown(self, package: str) -> str:
        """Return the version of one of the three packages, with the mark of what it is built from."""
        source = self.sources.get(package)
        return f"{getattr(self, package)}{source.mark if source is not None else ''}"

    @property
    def requirements(self) -> tuple[str, ...]:
        """Exact requirements, sorted: ``("accelerate==1.15.0", …)``; without a version where none is pinned."""
        pins = {**self.pins, **{name: getattr(self, name) for name in MAIN_PACKAGES}}
        exact = {name: f"{name}=={version}" for name, version in pins.items()}
        exact |= {name: f"{name} @ {source.location}" for name, source in self.sources.items()}
        exact |= {name: name for name in self.unpinned if name not in exact}
        return tuple(exact[name] for name in sorted(exact))

    @property
    def marks(self) -> tuple[str, ...]:
        """What decides what is installed beside the requirements; none for a stack of pinned releases."""
        built = [f"{name} {source.kind} {source.digest}" for name, source in sorted(self.sources.items())]
        return (*built, *([f"{self.resolution} {self.as_of}"] if self.as_of is not None else []))

    def version_of(self, package: str) -> str | None:
        """Return the pinned version of ``package``, or None when this stack does not pin it."""
        if package in MAIN_PACKAGES:
            return str(getattr(self, package))
        return self.pins.get(package)


_ALWAYS_NAMED = ("device", "geometry")
"""Fields that ``harness run`` takes from the machine or the recipe when they are not given."""


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
        if self.stack.resolution != PINNED:
            options["resolution"] = self.stack.resolution
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
        """The one command line that runs exactly this cell, whatever this machine or the recipe has for a default."""
        words = ["harness run", f"--model {self.family}", f"--recipe {self.recipe}"]
        named = {name: source.named for name, source in self.stack.sources.items()}
        words += [f"--{name} {named.get(name, getattr(self.stack, name))}" for name in MAIN_PACKAGES]
        words += [f"--pin {name}=={self.stack.pins[name]}" for name in self.stack.extra_pins]
        if self.stack.python is not None:
            words.append(f"--python-version {self.stack.python}")
        if self.stack.resolution != PINNED:
            words.append(f"--resolution {self.stack.resolution}")
        for name, default in DEFAULTS.items():
            value = getattr(self, name)
            if value != default or name in _ALWAYS_NAMED:
                words.append(f"--{name.replace('_', '-')} {value}")
        if self.unmanaged:
            words.append("--python PATH")
        return " ".join(words)
