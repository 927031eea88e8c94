"""Stacks and cells, and the one identifier that selects, logs, names files and reproduces a cell everywhere.

``qwen3_moe/lora@tf5.5.0-peft0.19.1-trl0.25.1`` is the family, the recipe and the stack; whatever is not the default is
appended in alphabetical order: ``…+dtype=bf16+geometry=square-down``. Ids are plain strings for shells, file systems and
``fnmatch``: they hold no character that any of the three treats specially, except in globs that a user writes.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints


def canonical_version(text: str) -> str:
    """Return the version as PEP 440 writes it; a malformed one is a ``ValueError`` that pydantic reports by key."""
    try:
        return str(Version(text))
    except InvalidVersion:
        numbers = re.search(r"\d+([.,_\s]+\d+)*", text)
        near = f"; did you mean {'.'.join(re.findall(r'[0-9]+', numbers[0]))!r}?" if numbers else ", such as '5.5.0'"
        raise ValueError(f"{text!r} is not a version (PEP 440){near}") from None


VersionText = Annotated[str, AfterValidator(canonical_version)]
Dtype = Literal["float32", "bf16"]
Device = Literal["cpu", "cuda"]
Word = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]

MAIN_PACKAGES = ("transformers", "peft", "trl")
"""The three packages whose versions name a stack."""


class Stack(BaseModel):
    """One pinned set of package versions.

    ``pins`` holds every other package that is pinned (torch, bitsandbytes, accelerate, datasets, …): name to version.
    ``extra_pins`` names those that differ from the configuration's own choice for this stack, which is what an id shows.
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


class Cell(BaseModel):
    """One (stack, family, recipe) and whatever about it is not the default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    DEFAULTS: ClassVar[dict[str, object]] = {
        "device": "cpu",
        "dtype": "float32",
        "engine": "reference",
        "fault": None,
        "geometry": "distinct",
        "seed": 0,
        "variant": "published",
    }

    family: Word
    recipe: Word
    stack: Stack
    geometry: Word = "distinct"
    variant: Word = "published"
    dtype: Dtype = "float32"
    device: Device = "cpu"
    engine: Word = "reference"
    seed: int = Field(default=0, ge=0, lt=2**32)
    fault: Word | None = None
    """What is broken on purpose in this cell's own merge: such a cell never passes."""
    unmanaged: bool = False
    """True when the cell runs in an interpreter that the user gave instead of an environment of ours."""

    @property
    def id(self) -> str:
        """The cell's identifier."""
        options = {
            name: getattr(self, name) for name, default in self.DEFAULTS.items() if getattr(self, name) != default
        }
        options |= {name: self.stack.pins[name] for name in self.stack.extra_pins}
        if self.stack.python is not None:
            options["python"] = self.stack.python
        if self.unmanaged:
            options["unmanaged"] = "yes"
        suffix = "".join(f"+{name.replace('_', '-')}={value}" for name, value in sorted(options.items()))
        return f"{self.family}/{self.recipe}@{self.stack.id}{suffix}"

    @property
    def file_stem(self) -> str:
        """The id without the family: results are stored as ``<out>/cells/<family>/<file_stem>.json``, the log beside it."""
        return self.id.split("/", 1)[1]

    @property
    def reproduce(self) -> str:
        """The one command line that runs exactly this cell."""
        words = ["harness run", f"--model {self.family}", f"--recipe {self.recipe}"]
        words += [f"--{name} {getattr(self.stack, name)}" for name in MAIN_PACKAGES]
        words += [f"--pin {name}=={self.stack.pins[name]}" for name in self.stack.extra_pins]
        if self.stack.python is not None:
            words.append(f"--python-version {self.stack.python}")
        for name, default in self.DEFAULTS.items():
            value = getattr(self, name)
            if value != default or name == "device":
                words.append(f"--{name.replace('_', '-')} {value}")
        if self.unmanaged:
            words.append("--python PATH")
        return " ".join(words)
