"""From a profile to cells: which ones, why, in which order, on which shard.

The plan is a pure function of configuration, catalogue and selection. So every machine of a sharded run and every later
reader computes the same one. A glob that selects nothing is an error, even where another one selects something. A
mistyped selector must not shrink a run in silence.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import ValidationError
from rapidfuzz import fuzz, process

from harness.contract.cell_fields import DEFAULTS, Device
from harness.counting import counted
from harness.errors import ConfigurationError, NothingSelectedError, UnknownNameError
from harness.matrix.catalogue import MODEL_TYPE, Catalogue
from harness.matrix.cell import Cell, Stack
from harness.matrix.combine import Allowed, combine
from harness.matrix.config import AXES, Block, MatrixConfig, block_selections, expand_names, known_names
from harness.matrix.costs import Seconds, published_seconds
from harness.matrix.generated import Generated
from harness.matrix.names import match_names
from harness.matrix.reading import describe
from harness.matrix.selections import VersionSelection
from harness.matrix.shards import shard_cuts

DEFAULT_PROFILE = "default"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a user asks for.

    Attributes:
        profile: the profile's name.
        stacks: ``fnmatch`` globs over stack ids. A cell is taken when any of them matches its stack. Without globs all
            cells are taken.
        select: ``fnmatch`` globs over cell ids. A cell is taken when any of them matches. Without globs all cells are
            taken.
        shard: (I, N): the Ith of N parts, counted from 1.
        device: where the cells run. It is part of their ids.
        unmanaged: True when they run in an interpreter that the user gave.
        stack: what that interpreter holds. It takes the place of every declared stack, and each cell is there once.
        generated: the stacks that each ``[[selections]]`` comes to today, by its name, as far as they are needed.
        seconds: how long a cell takes, by which shards are balanced. It must say the same on every machine that has a
            part of the whole.
    """

    profile: str = DEFAULT_PROFILE
    stacks: tuple[str, ...] = ()
    select: tuple[str, ...] = ()
    shard: tuple[int, int] = (1, 1)
    device: Device = "cpu"
    unmanaged: bool = False
    stack: Stack | None = None
    generated: Mapping[str, Generated] = field(default_factory=dict)
    seconds: Seconds = published_seconds
    known: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By a stack's key the model types with experts that its transformers knows, as far as they are needed."""


def parse_shard(text: str) -> tuple[int, int]:
    """Parse ``2/5`` into (2, 5).

    Raises:
        ConfigurationError: it is no such pair with 1 <= I <= N.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count:
        raise ConfigurationError(
            f"--shard {text!r} is not a part of a whole.", remedy="Write I/N with 1 <= I <= N, as 2/5."
        )
    return index, count


def plan_cells(config: MatrixConfig, catalogue: Catalogue, selection: Selection) -> tuple[Cell, ...]:
    """Return the selected cells, each once, ordered by stack, family, recipe, then the rest, as declared.

    A shard is a contiguous part of that order. So the cells of a stack stay together, and few machines need its
    environment. Where it ends follows from how long cells take (``shards``).

    Raises:
        UnknownNameError: there is no such profile.
        NothingSelectedError: a glob matches no cell of the profile, or the shard is empty; near ids are named.
        ConfigurationError: a block of the profile has no cell.
        ValueError: a selection that the profile needs has not been expanded.
    """
    if missing := [
        it.name for it in needed_selections(config, selection.profile) if it.name not in selection.generated
    ]:
        raise ValueError(f"selections that have not been expanded: {', '.join(missing)}")
    cells = _profile_cells(config, catalogue, selection)
    if selection.stacks:
        known = tuple(dict.fromkeys(cell.stack.id for cell in cells))
        wanted = match_names(selection.stacks, known, "stack", "--stack")
        cells = tuple(cell for cell in cells if cell.stack.id in wanted)
    if selection.select:
        ids = [cell.id for cell in cells]
        chosen: set[str] = set()
        for glob in selection.select:
            matching = [cell_id for cell_id in ids if fnmatch.fnmatchcase(cell_id, glob)]
            if not matching:
                raise _nothing_selected(glob, ids, config, catalogue, selection)
            chosen.update(matching)
        cells = tuple(cell for cell in cells if cell.id in chosen)
    index, count = selection.shard
    cuts = shard_cuts([selection.seconds(cell) for cell in cells] if count > 1 else [1.0] * len(cells), count)
    part = cells[cuts[index - 1] : cuts[index]]
    if not part:
        raise NothingSelectedError(
            f"shard {index}/{count} is empty: only {counted(len(cells), 'cell is', 'cells are')} selected.",
            remedy=f"Use at most {counted(len(cells), 'shard')}.",
        )
    return part


def needed_selections(config: MatrixConfig, profile: str) -> tuple[VersionSelection, ...]:
    """Return the selections that the blocks of a profile name, each once, in the order of declaration.

    Raises:
        UnknownNameError: there is no such profile.
    """
    blocks = enumerate(config.profile(profile).cells)
    found = [
        selection
        for number, block in blocks
        for selection in block_selections(block, config, where=f"profiles.{profile}.cells.{number}")
    ]
    return tuple(selection for selection in config.selections if selection in found)


def reasons(config: MatrixConfig, catalogue: Catalogue, selection: Selection) -> dict[str, tuple[str, ...]]:
    """Return why each cell of the selection's profile would run, by its id.

    They are the blocks that have it, each with the selectors that its stack comes from, if any.
    """
    return {planned.cell.id: tuple(planned.reasons) for planned in _planned(config, catalogue, selection)}


def all_cells(config: MatrixConfig, catalogue: Catalogue, *, device: Device = "cpu") -> tuple[Cell, ...]:
    """Return the cells of every profile together, each once, as they are when they run on a device.

    Cells on stacks that are not declared but found (``[[selections]]``) are not known here.
    """
    plans = (_profile_cells(config, catalogue, Selection(profile=name, device=device)) for name in config.profiles)
    return tuple({cell.id: cell for cells in plans for cell in cells}.values())


def one_cell(catalogue: Catalogue, stack: Stack, *, family: str, recipe: str, **options: object) -> Cell:
    """Return the cell that a user names by its parts, whether or not any profile has it.

    Args:
        catalogue: the names that exist.
        stack: its versions.
        family: the model's name.
        recipe: the recipe's name.
        options: other fields of ``Cell``, by name. Those left out, or None, are the defaults. The default geometry is
            the recipe's, where it has one.

    Raises:
        UnknownNameError: there is no such family, recipe, geometry, variant, engine or fault. The message
            suggests the nearest.
        ConfigurationError: another option has a value that it cannot have.
    """
    options = {name: value for name, value in options.items() if value is not None}
    options.setdefault("geometry", catalogue.geometry_of(recipe) or DEFAULTS["geometry"])
    names = {"recipe": (recipe, catalogue.recipes)}
    if not MODEL_TYPE.fullmatch(family):
        error = UnknownNameError("model", family, catalogue.families)
        error.remedy = (
            f"{error.remedy} Or the model_type that stands in a model's config.json, in lower case as `mixtral`: any "
            "family with routed experts that the installed transformers knows."
        )
        raise error
    for what, known in (("geometry", catalogue.geometries), ("engine", catalogue.engines)):
        names[what] = (str(options.get(what, DEFAULTS[what])), known)
    for what, (name, known) in names.items():
        if name not in known:
            raise UnknownNameError(what, name, known)
    if (fault := options.get("fault")) is not None and fault not in catalogue.faults:
        raise UnknownNameError("fault", str(fault), catalogue.faults)
    variant = str(options.get("variant", DEFAULTS["variant"]))
    if not catalogue.is_described(family):
        refuse_of_described(catalogue, family, recipe, options)
    if variant not in (offered := catalogue.variants_of(family)):
        raise UnknownNameError(f"variant of {family}", variant, offered)
    fields = {"family": family, "recipe": recipe, "stack": stack, **options}
    try:
        return Cell.model_validate(fields)
    except ValidationError as error:
        raise describe(error, fields, Cell, None) from None


def refuse_of_described(catalogue: Catalogue, family: str, recipe: str, options: Mapping[str, object]) -> None:
    """Refuse of a family without a file what only a file can say.

    Raises:
        ConfigurationError: something of it is asked for.
    """
    if asked := _needs_a_file(catalogue, recipe, options):
        raise ConfigurationError(
            f"{' and '.join(asked)} {'is' if len(asked) == 1 else 'are'} for the families that have a file here, and "
            f"{family} has none.",
            remedy=f"Those that have one: {', '.join(catalogue.families)}. What others can be asked: "
            "docs/reference/checkpoints.md.",
        )


def _needs_a_file(catalogue: Catalogue, recipe: str, options: Mapping[str, object]) -> list[str]:
    """Return what of a cell only a family's file can say: other sizes and layouts, what users call things, biases."""
    facts = catalogue.facts_of.get(recipe)
    asked = [
        f"{name} {options[name]}"
        for name in ("geometry", "variant")
        if options.get(name, DEFAULTS[name]) not in {DEFAULTS[name], catalogue.geometry_of(recipe)}
    ]
    if (facts is not None and (facts.quantized or facts.as_written or facts.per_expert or facts.more_than_weights)) or (
        catalogue.geometry_of(recipe) is not None
    ):
        asked.append(f"recipe {recipe}")
    return asked


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A cell, and the blocks that have it."""

    cell: Cell
    reasons: list[str]


def _profile_cells(config: MatrixConfig, catalogue: Catalogue, selection: Selection) -> tuple[Cell, ...]:
    """Return all cells of the selection's profile, each once, in order; globs and shard are not looked at."""
    return tuple(planned.cell for planned in _planned(config, catalogue, selection))


def _planned(config: MatrixConfig, catalogue: Catalogue, selection: Selection) -> list[_Planned]:
    """Return the cells of the selection's profile, ordered by stack, then the rest, as declared.

    Stacks that were found come before those that are declared: what is new among them runs first.
    """
    found = [stack for generated in selection.generated.values() for stack in generated.stacks]
    stacks = {stack.key: stack for stack in (*found, *config.declared)}
    places = {key: place for place, key in enumerate(stacks)}
    others = [names for key, names in known_names(config, catalogue).items() if key != "stacks"]
    by_place: dict[tuple[int | str, ...], _Planned] = {}
    for number, block in enumerate(config.profile(selection.profile).cells):
        where = f"profiles.{selection.profile}.cells.{number}"
        pool = _stacks_of(block, config, selection, where)
        if pool is None:
            continue
        ids = tuple(dict.fromkeys(stack.id for stack in pool))
        matched = expand_names(block, config, catalogue, where=where, stacks=ids if block.selections else None)
        real = _real(catalogue)
        for part, families in _by_families(block, pool, matched["stacks"], selection, where):
            names = [families if key == "families" and families else matched[key] for key in AXES]
            if not any(map(real, itertools.product(*names))):
                raise ConfigurationError(
                    f"{where}: none of its families has any of its variants, or all its cells need.",
                    remedy="Name a variant that one of its families has, or published; docs/reference/checkpoints.md.",
                )
            by_id: dict[str, list[Stack]] = {}
            for stack in part:
                by_id.setdefault(stack.id, []).append(stack)
            names[0] = tuple(name for name in names[0] if name in by_id)
            for stack_id, *rest in combine(names, block.strategy, allowed=real):
                fields = {AXES[key]: name for key, name in zip(list(AXES)[1:], rest, strict=True)}
                for stack in by_id[stack_id]:
                    why = _why(where, block, stack, config, selection)
                    place = (places[stack.key], *_place(rest, others))
                    if place in by_place:
                        by_place[place].reasons.append(why)
                    else:
                        by_place[place] = _Planned(cell=_cell(stack, fields, selection), reasons=[why])
    cells: dict[str, _Planned] = {}
    for place in sorted(by_place):
        planned = by_place[place]
        cells.setdefault(planned.cell.id, planned)
    return list(cells.values())


def _place(names: Sequence[str], known: Sequence[Sequence[str]]) -> tuple[int | str, ...]:
    """Return where a cell stands in its stack: families that have a file come first, the others by name."""
    (family, *rest), (families, *others) = names, known
    number = families.index(family) if family in families else len(families)
    return (number, family, *(them.index(name) for them, name in zip(others, rest, strict=True)))


def _real(catalogue: Catalogue) -> Allowed:
    """Return what tells whether a combination of names can be a cell: its family has its variant, and all it needs."""
    family, variant = list(AXES).index("families"), list(AXES).index("variants")
    recipe, geometry = list(AXES).index("recipes"), list(AXES).index("geometries")

    def allowed(names: Sequence[str]) -> bool:
        if names[variant] not in catalogue.variants_of(names[family]):
            return False
        return catalogue.is_described(names[family]) or not _needs_a_file(
            catalogue, names[recipe], {"geometry": names[geometry]}
        )

    return allowed


def _by_families(
    block: Block, pool: Sequence[Stack], ids: Sequence[str], selection: Selection, where: str
) -> Iterator[tuple[tuple[Stack, ...], tuple[str, ...]]]:
    """Yield stacks that have families in common, and these: none where the block names its own.

    A stack that has not been asked has none yet.
    """
    if not block.introspected:
        yield tuple(pool), ()
        return
    for stack in pool:
        if stack.id in ids and stack.key in selection.known:
            known = selection.known[stack.key]
            yield (stack,), match_names(block.introspected, known, "family", f"{where}.introspected")


def needed_stacks(config: MatrixConfig, catalogue: Catalogue, selection: Selection) -> tuple[Stack, ...]:
    """Return the stacks whose families have to be asked for before the selection's profile can be planned.

    Raises:
        UnknownNameError: there is no such profile.
    """
    found: dict[str, Stack] = {}
    for number, block in enumerate(config.profile(selection.profile).cells):
        where = f"profiles.{selection.profile}.cells.{number}"
        pool = _stacks_of(block, config, selection, where) if block.introspected else None
        if pool:
            ids = tuple(dict.fromkeys(stack.id for stack in pool))
            matched = expand_names(block, config, catalogue, where=where, stacks=ids if block.selections else None)
            found |= {stack.key: stack for stack in pool if stack.id in matched["stacks"]}
    return tuple(found.values())


def _stacks_of(block: Block, config: MatrixConfig, selection: Selection, where: str) -> tuple[Stack, ...] | None:
    """Return the stacks among which a block's globs choose; None where its selections have not been expanded."""
    if not block.selections:
        return config.declared
    named = [it.name for it in block_selections(block, config, where=where)]
    if not all(name in selection.generated for name in named):
        return None
    return tuple(stack for name in named for stack in selection.generated[name].stacks)


def _why(where: str, block: Block, stack: Stack, config: MatrixConfig, selection: Selection) -> str:
    """Return which block has a cell, and which selectors its stack comes from."""
    named = [it.name for it in block_selections(block, config, where=where)] if block.selections else []
    by = [
        f"selections.{name}: {selection.generated[name].reasons[stack.key]}"
        for name in named
        if stack.key in selection.generated[name].reasons
    ]
    return f"{where} ({'; '.join(by)})" if by else where


def _cell(stack: Stack, fields: Mapping[str, str], selection: Selection) -> Cell:
    return Cell.model_validate(
        {
            **fields,
            "stack": selection.stack or stack,
            "device": selection.device,
            "unmanaged": selection.unmanaged,
        }
    )


def _nothing_selected(
    glob: str, ids: Sequence[str], config: MatrixConfig, catalogue: Catalogue, selection: Selection
) -> NothingSelectedError:
    """Explain an empty selection: by another profile that has such cells, else by the ids most like the glob."""
    message = f"{glob!r} selects none of the {counted(len(ids), 'cell')} of profile {selection.profile!r}."
    for name in config.profiles:
        other = _profile_cells(config, catalogue, replace(selection, profile=name))
        if count := sum(fnmatch.fnmatchcase(cell.id, glob) for cell in other):
            return NothingSelectedError(
                message, remedy=f"Profile {name!r} has {counted(count, 'such cell')}: use --profile {name}."
            )
    near = [str(found[0]) for found in process.extract(glob.replace("*", " "), ids, scorer=fuzz.WRatio, limit=3)]
    remedy = f"The nearest ids: {', '.join(near)}. `harness plan --profile {selection.profile}` lists all."
    return NothingSelectedError(message, remedy=remedy)
