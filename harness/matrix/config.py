"""``matrix.toml``: stacks, families, recipes, profiles, bands and limits.

The models are the file's only definition. Its JSON Schema is generated from them, and reading it validates everything
before anything runs. The models check what pydantic can see: types, unknown keys, malformed versions. What needs the
catalogue (names of families, recipes, geometries) is checked when the file is loaded. Both speak in key paths.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from harness.contract import bands
from harness.contract.cell_fields import CellFields, Dtype
from harness.errors import UnknownNameError, nearest
from harness.matrix.catalogue import Catalogue
from harness.matrix.cell import MAIN_PACKAGES, PYTHON_PATTERN, PinName, Stack, VersionText
from harness.matrix.combine import Strategy
from harness.matrix.conditions import ConditionText, parse_condition
from harness.matrix.names import match_names
from harness.matrix.reading import read_model
from harness.matrix.selections import VersionSelection
from harness.matrix.selectors import ReleaseText

DTYPES: tuple[Dtype, ...] = get_args(Dtype)


def _checked_unique(names: tuple[str, ...]) -> tuple[str, ...]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"named more than once: {', '.join(twice)}")
    return names


Pins = dict[PinName, VersionText]
Number = Annotated[float, Field(strict=True)]
"""Neither a boolean nor a text."""
Globs = Annotated[tuple[str, ...], Field(min_length=1)]
Names = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_checked_unique)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class DeclaredStack(_Table):
    """One combination of versions to be tested."""

    transformers: ReleaseText
    """Exact version of transformers."""
    peft: ReleaseText
    """Exact version of peft."""
    trl: ReleaseText
    """Exact version of trl."""
    pins: Pins = Field(default_factory=dict)
    """Exact versions of other packages, where this stack wants others than ``[pins]`` and ``[[overrides]]`` say."""
    python: str | None = Field(default=None, pattern=PYTHON_PATTERN)
    """``major.minor`` version of the environment's interpreter; absent: the one that runs the harness."""


class Override(_Table):
    """Other pins for every stack whose versions meet a condition, declared or chosen on the command line."""

    when: ConditionText
    """Condition on versions, such as ``transformers<5``."""
    pins: Pins = Field(min_length=1)
    """Exact versions by package; they replace those of ``[pins]``."""
    reason: str = Field(min_length=1)
    """Why these stacks need them."""


class Block(_Table):
    """A block of cells: combinations of what its globs match, every one unless ``strategy`` says otherwise."""

    stacks: Globs = ("*",)
    """Globs over stack ids, ``tf5.5.0-peft0.19.1-trl0.25.1``: the declared ones, or those of ``selections``."""
    selections: Globs = ()
    """Globs over the names of ``[[selections]]``, whose stacks take the place of the declared ones."""
    families: Globs = ("*",)
    """Globs over the families of this file."""
    introspected: Globs = ()
    """Globs over the model types with experts that the transformers of each stack knows. They take the place of
    ``families``, and each stack is asked for its own."""
    recipes: Globs
    """Globs over the recipes of this file."""
    geometries: Globs = (CellFields.geometry,)
    """Globs over geometry presets."""
    variants: Globs = (CellFields.variant,)
    """Globs over checkpoint variants; a family contributes those that it has."""
    dtypes: Globs = (CellFields.dtype,)
    """Globs over storage dtypes."""
    engines: Globs = (CellFields.engine,)
    """Globs over merge engines."""
    seeds: Globs = (str(CellFields.seed),)
    """Globs over the seeds 0 to 99; ``?`` are the first ten. ``harness run --seed`` takes any."""
    strategy: Strategy = "full"
    """Which combinations: ``full``, all; ``pairwise``, so few that any two values of different keys meet at least once;
    ``extremes``, the first of every key, the last of every key, and each key's last among the firsts of the others."""


SEEDS = tuple(map(str, range(100)))
"""Seeds that a profile can name."""

AXES: Mapping[str, str] = {
    "stacks": "stack", "families": "family", "recipes": "recipe", "geometries": "geometry", "variants": "variant",
    "dtypes": "dtype", "engines": "engine", "seeds": "seed",
}  # fmt: skip
"""The field of a cell that each key of a block varies, in the order in which cells are sorted."""


class Profile(_Table):
    """A named set of cells: the union of its blocks."""

    description: str = Field(min_length=1)
    """What the profile is for, and about how long it takes."""
    cells: tuple[Block, ...] = Field(min_length=1)
    """Its blocks."""


_LIMITS: Mapping[str, tuple[str, Callable[[float, float], bool]]] = {
    "ge": ("at least", operator.ge),
    "gt": ("greater than", operator.gt),
    "le": ("at most", operator.le),
}
"""What the contract limits a band to, in words and as a comparison."""


_NOT_OF_THE_MERGE = {item.name for item in dataclasses.fields(bands.Bands) if not item.metadata["of_merge"]}
"""Bands of what comes before a merge, where no engine can have another floor."""


def _describe_bands(schema: dict[str, Any]) -> None:
    """Give the JSON Schema of the bands the meaning of each and its limits."""
    limits = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum"}
    for item in dataclasses.fields(bands.Bands):
        entry = schema["properties"][item.name]
        entry["description"] = item.metadata["meaning"]
        entry |= {word: item.metadata[name] for name, word in limits.items() if item.metadata[name] is not None}


class Bands(BaseModel, bands.Bands, frozen=True):
    """Where a measured value stops being right, for one storage dtype: see ``harness.contract.bands``."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra=_describe_bands)

    @field_validator("*")
    @classmethod
    def _within_limits(cls, value: float, info: ValidationInfo) -> float:
        limits = next(item.metadata for item in dataclasses.fields(bands.Bands) if item.name == info.field_name)
        for name, (words, holds) in _LIMITS.items():
            if (limit := limits[name]) is not None and not holds(value, limit):
                raise ValueError(f"{value:g} is not {words} {limit:g}")
        return value


class Limits(_Table):
    """What a cell may use."""

    model_config = ConfigDict(strict=True)

    cell_seconds: float = Field(default=300, gt=0)
    """Seconds that a cell's work may take, its environment not counted; then it is stopped: ``timeout``."""
    memory_mb: int = Field(default=8192, gt=0)
    """Resident memory of all processes of one cell together, in MiB; above it they are stopped: ``oom``."""
    jobs: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    """Cells at a time; ``auto`` is one for each core."""
    threads: Literal["auto"] | Annotated[int, Field(gt=0)] = "auto"
    """Threads of each process of a cell; ``auto`` divides the cores among the jobs."""

    def share(self, cores: int, *, jobs: int | None = None) -> tuple[int, int]:
        """Return (cells at a time, threads per cell) on a machine with ``cores`` cores.

        Args:
            cores: cores that this process may use, at least 1.
            jobs: the command line's own choice of cells at a time, which outranks the file's.
        """
        at_a_time = jobs or (cores if self.jobs == "auto" else self.jobs)
        return at_a_time, (max(1, cores // at_a_time) if self.threads == "auto" else self.threads)


class MatrixConfig(_Table):
    """What to run: stacks, families, recipes, profiles, bands and limits."""

    schema_version: Literal[1] = Field(alias="schema")
    """Version of this format."""
    pins: Pins = Field(default_factory=dict)
    """Exact versions of packages other than transformers, peft and trl, for every stack. torch must be among them."""
    overrides: tuple[Override, ...] = ()
    """Other pins where the versions of a stack need them; later entries outrank earlier ones."""
    stacks: tuple[DeclaredStack, ...] = Field(min_length=1)
    """Stacks, in the order in which they run and are offered to complete a partial choice."""
    selections: tuple[VersionSelection, ...] = ()
    """Stacks that are found and not written down: the newest of each, say. Blocks of profiles name them."""
    families: Names | None = None
    """Model families that profiles may have; absent: all that there are files for."""
    recipes: Names | None = None
    """Training recipes that profiles may have; absent: all that there are files for."""
    profiles: dict[str, Profile] = Field(min_length=1)
    """Named sets of cells."""
    bands: dict[Dtype, Bands]
    """Bands per storage dtype, as a merge deserves that rounds once and writes every tensor."""
    engine_bands: dict[str, dict[Dtype, dict[str, Number]]] = Field(default_factory=dict)
    """Other values of single bands of the merge itself, by engine and storage dtype, where an engine's own arithmetic
    has another floor."""
    geometry_bands: dict[str, dict[Dtype, dict[str, Number]]] = Field(default_factory=dict)
    """Other values of single bands, by geometry and storage dtype, where so many layers have another floor."""
    limits: Limits = Limits()
    """What a cell may use."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "torch" not in self.pins:
            near = nearest("torch", self.pins)
            hint = f"; is {near!r} meant to be that?" if near else ""
            raise ValueError(f"pins: torch must be pinned, because its build decides what is measured{hint}")
        ids = [stack.id for stack in self.declared]
        for index, stack_id in enumerate(ids):
            if (first := ids.index(stack_id)) != index:
                raise ValueError(f"stacks.{index}: {stack_id} is declared already, as stacks.{first}")
        names = [selection.name for selection in self.selections]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"selections: named more than once: {', '.join(twice)}")
        if missing := [dtype for dtype in DTYPES if dtype not in self.bands]:
            raise ValueError(f"bands: there are none for {', '.join(missing)}")
        return self

    @model_validator(mode="after")
    def _bands_can_be(self) -> Self:
        for engine, by_dtype in self.engine_bands.items():
            for dtype, changes in by_dtype.items():
                if others := sorted(changes.keys() & _NOT_OF_THE_MERGE):
                    place = f"engine_bands.{engine}.{dtype}.{others[0]}"
                    raise ValueError(f"{place}: this is no band of a merge, so no engine's")
                self._changed(self.bands[dtype], changes, f"engine_bands.{engine}.{dtype}")
        for geometry, by_dtype in self.geometry_bands.items():
            for dtype, changes in by_dtype.items():
                self._changed(self.bands[dtype], changes, f"geometry_bands.{geometry}.{dtype}")
        return self

    def bands_of(self, *, engine: str, dtype: Dtype, geometry: str) -> Bands:
        """Return the bands that cells of a geometry and a storage dtype are held to, and an engine's merges of them.

        An engine's own band outranks a geometry's.
        """
        changes = {
            **self.geometry_bands.get(geometry, {}).get(dtype, {}),
            **self.engine_bands.get(engine, {}).get(dtype, {}),
        }
        return self._changed(self.bands[dtype], changes, "bands")

    @staticmethod
    def _changed(bands: Bands, changes: Mapping[str, float], where: str) -> Bands:
        """Return bands with other values of some.

        Raises:
            ValueError: there is no such band, or a value is none that it can have.
        """
        try:
            return Bands.model_validate({**bands.model_dump(), **changes})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(f"{'.'.join((where, *map(str, first['loc'])))}: {first['msg']}") from None

    @cached_property
    def declared(self) -> tuple[Stack, ...]:
        """The declared stacks, complete with every other pin."""
        return tuple(
            self.stack({name: getattr(entry, name) for name in MAIN_PACKAGES}, pins=entry.pins, python=entry.python)
            for entry in self.stacks
        )

    def stack(
        self, versions: Mapping[str, str], *, pins: Mapping[str, str] | None = None, python: str | None = None
    ) -> Stack:
        """Return the stack of three main ``versions``.

        Its other pins come from ``[pins]``, then ``[[overrides]]``, then ``pins``. Later ones outrank earlier ones.
        """
        plain = Stack.model_validate({**versions, "pins": {**self.pins, **(pins or {})}, "python": python})
        chosen = dict(self.pins)
        for override in self.overrides:
            if parse_condition(override.when).holds(plain):
                chosen |= override.pins
        return plain.model_copy(update={"pins": {**chosen, **(pins or {})}})

    def profile(self, name: str) -> Profile:
        """Return the profile ``name``.

        Raises:
            UnknownNameError: there is none.
        """
        if name not in self.profiles:
            raise UnknownNameError("profile", name, self.profiles)
        return self.profiles[name]


def load_config(path: Path, catalogue: Catalogue) -> MatrixConfig:
    """Read and validate a ``matrix.toml``.

    Args:
        path: the file.
        catalogue: the names that exist.

    Raises:
        ConfigurationError: the file cannot be read or says something that cannot be; the message names the key path.
        UnknownNameError: its one problem is a name or key that nothing has.
    """
    config = read_model(path, MatrixConfig)
    for key, known in (("families", catalogue.families), ("recipes", catalogue.recipes)):
        for index, name in enumerate(getattr(config, key) or ()):
            if name not in known:
                what = "family" if key == "families" else "recipe"
                raise UnknownNameError(what, name, known, where=f"{path}: {key}.{index}")
    for geometry in config.geometry_bands:
        if geometry not in catalogue.geometries:
            raise UnknownNameError("geometry", geometry, catalogue.geometries, where=f"{path}: geometry_bands")
    for engine in config.engine_bands:
        if engine not in catalogue.engines:
            raise UnknownNameError("engine", engine, catalogue.engines, where=f"{path}: engine_bands")
    for profile_name, profile in config.profiles.items():
        for index, block in enumerate(profile.cells):
            place = f"{path}: profiles.{profile_name}.cells.{index}"
            expand_names(block, config, catalogue, where=place)
            block_selections(block, config, where=place)
    return config


def expand_names(
    block: Block, config: MatrixConfig, catalogue: Catalogue, *, where: str, stacks: tuple[str, ...] | None = None
) -> dict[str, tuple[str, ...]]:
    """Return what each of a block's globs match, by the block's key, in the order of declaration.

    Args:
        block: the block.
        config: what the file declares.
        catalogue: the names that exist.
        where: the block's key path.
        stacks: the ids of the stacks of the block's selections. None: of a block that has some, nothing is known of
            stacks, and so nothing is said.

    Raises:
        ConfigurationError: a glob matches nothing, or a name is unknown.
    """
    known = known_names(config, catalogue)
    if block.selections:
        known = {"stacks": stacks or (), **{key: names for key, names in known.items() if key != "stacks"}}
    return {
        key: match_names(getattr(block, key), names, AXES[key], f"{where}.{key}")
        for key, names in known.items()
        if not (key == "stacks" and block.selections and stacks is None)
    }


def block_selections(block: Block, config: MatrixConfig, *, where: str) -> tuple[VersionSelection, ...]:
    """Return the selections that a block names, in the order of declaration.

    Raises:
        ConfigurationError: a glob matches none, or a name is unknown.
    """
    names = tuple(selection.name for selection in config.selections)
    wanted = match_names(block.selections, names, "selection", f"{where}.selections")
    return tuple(selection for selection in config.selections if selection.name in wanted)


def known_names(config: MatrixConfig, catalogue: Catalogue) -> dict[str, tuple[str, ...]]:
    """Return every name that the globs of a block can match, by the block's key, in the order of declaration."""
    return {
        "stacks": tuple(stack.id for stack in config.declared),
        "families": config.families or catalogue.families,
        "recipes": config.recipes or catalogue.recipes,
        "geometries": catalogue.geometries,
        "variants": catalogue.all_variants,
        "dtypes": DTYPES,
        "engines": catalogue.engines,
        "seeds": SEEDS,
    }
