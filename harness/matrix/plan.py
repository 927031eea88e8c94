"""From a profile to cells: which ones, in which order, on which shard, and how the plan is shown.

The plan is a pure function of configuration, catalogue and selection. So every machine of a sharded run and every later
reader computes the same one. A glob that selects nothing is an error, even where another one selects something. A
mistyped selector must not shrink a run in silence.
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError
from rapidfuzz import fuzz, process

from harness.contract.cell_fields import DEFAULTS, Device
from harness.counting import counted
from harness.errors import ConfigurationError, NothingSelectedError, UnknownNameError
from harness.matrix.catalogue import Catalogue
from harness.matrix.cell import MAIN_PACKAGES, Cell, Stack
from harness.matrix.config import AXES, MatrixConfig, expand_names, known_names
from harness.matrix.names import match_names
from harness.matrix.reading import describe

DEFAULT_PROFILE = "default"
COLUMNS = (*MAIN_PACKAGES, "family", "recipe", "other", "id")
"""Columns of the plan as a table."""


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
    """

    profile: str = DEFAULT_PROFILE
    stacks: tuple[str, ...] = ()
    select: tuple[str, ...] = ()
    shard: tuple[int, int] = (1, 1)
    device: Device = "cpu"
    unmanaged: bool = False
    stack: Stack | None = None


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
    environment. Sizes of shards differ by at most one.

    Raises:
        UnknownNameError: there is no such profile.
        NothingSelectedError: a glob matches no cell of the profile, or the shard is empty; near ids are named.
        ConfigurationError: a block of the profile has no cell.
    """
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
    part = cells[(index - 1) * len(cells) // count : index * len(cells) // count]
    if not part:
        raise NothingSelectedError(
            f"shard {index}/{count} is empty: only {counted(len(cells), 'cell is', 'cells are')} selected.",
            remedy=f"Use at most {counted(len(cells), 'shard')}.",
        )
    return part


def all_cells(config: MatrixConfig, catalogue: Catalogue, *, device: Device = "cpu") -> tuple[Cell, ...]:
    """Return the cells of every profile together, each once, as they are when they run on a device."""
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
    names = {"model": (family, catalogue.families), "recipe": (recipe, catalogue.recipes)}
    for what, known in (("geometry", catalogue.geometries), ("engine", catalogue.engines)):
        names[what] = (str(options.get(what, DEFAULTS[what])), known)
    for what, (name, known) in names.items():
        if name not in known:
            raise UnknownNameError(what, name, known)
    if (fault := options.get("fault")) is not None and fault not in catalogue.faults:
        raise UnknownNameError("fault", str(fault), catalogue.faults)
    variant = str(options.get("variant", DEFAULTS["variant"]))
    if variant not in (offered := catalogue.variants_of(family)):
        raise UnknownNameError(f"variant of {family}", variant, offered)
    fields = {"family": family, "recipe": recipe, "stack": stack, **options}
    try:
        return Cell.model_validate(fields)
    except ValidationError as error:
        raise describe(error, fields, Cell, None) from None


def plan_rows(cells: Iterable[Cell]) -> list[dict[str, str]]:
    """Return the plan as rows of a table whose columns are ``COLUMNS``; ``other`` holds what is not the default."""
    return [
        {
            **{name: str(getattr(cell.stack, name)) for name in MAIN_PACKAGES},
            "family": cell.family,
            "recipe": cell.recipe,
            "other": " ".join(cell.id.split("+")[1:]),
            "id": cell.id,
        }
        for cell in cells
    ]


def plan_json(cells: Sequence[Cell], selection: Selection) -> str:
    """Return the plan as JSON: each cell complete, with its id and the command that runs exactly it."""
    document = {
        "profile": selection.profile,
        "select": list(selection.select),
        "shard": "/".join(str(number) for number in selection.shard),
        "cells": [{"id": cell.id, "reproduce": cell.reproduce, **cell.model_dump(mode="json")} for cell in cells],
    }
    return json.dumps(document, indent=2)


def github_matrix(cells: Sequence[Cell], selection: Selection) -> str:
    """Return the plan as the value of a GitHub Actions ``strategy.matrix``, on one line: one job per stack.

    A stack's cells share its environment. A matrix may have at most 256 jobs (GitHub's documentation, "Running
    variations of jobs in a workflow"), and a nightly profile has more cells. ``arguments`` is what such a job gives to
    ``harness matrix``, quoted for a shell.
    """
    include = []
    for stack, members in itertools.groupby(cells, key=lambda cell: cell.stack):
        ids = [cell.id for cell in members]
        globs = [f"*@{stack.id}", f"*@{stack.id}+*"]
        useful = [glob for glob in globs if fnmatch.filter(ids, glob)]
        # The whole of a stack takes two globs at most. A part of it is spelled out, because selectors only add up.
        whole = not selection.select and selection.shard == (1, 1)
        words = ["--profile", selection.profile]
        words += [word for glob in (useful if whole else ids) for word in ("--select", glob)]
        words += ["--device", selection.device] if selection.device != "cpu" else []
        versions = {name: getattr(stack, name) for name in MAIN_PACKAGES}
        include.append({"stack": stack.id, **versions, "cells": len(ids), "arguments": shlex.join(words)})
    return json.dumps({"include": include}, separators=(",", ":"))


def _profile_cells(config: MatrixConfig, catalogue: Catalogue, selection: Selection) -> tuple[Cell, ...]:
    """Return all cells of the selection's profile, each once, in order; globs and shard are not looked at."""
    stacks = {stack.id: stack for stack in config.declared}
    order = known_names(config, catalogue).values()
    found: dict[tuple[int, ...], Cell] = {}
    for number, block in enumerate(config.profile(selection.profile).cells):
        where = f"profiles.{selection.profile}.cells.{number}"
        combinations = itertools.product(*expand_names(block, config, catalogue, where=where).values())
        asked = [dict(zip(AXES.values(), names, strict=True)) for names in combinations]
        real = [fields for fields in asked if fields["variant"] in catalogue.variants_of(fields["family"])]
        if not real:
            raise ConfigurationError(f"{where}: none of its families has any of its variants.")
        for fields in real:
            place = tuple(known.index(name) for known, name in zip(order, fields.values(), strict=True))
            found[place] = _cell(stacks, fields, selection)
    cells = {cell.id: cell for cell in (found[place] for place in sorted(found))}
    return tuple(cells.values())


def _cell(stacks: Mapping[str, Stack], fields: Mapping[str, str], selection: Selection) -> Cell:
    return Cell.model_validate(
        {
            **fields,
            "stack": selection.stack or stacks[fields["stack"]],
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
