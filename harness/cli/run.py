"""``harness run``: one cell, named by its parts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.device import choose_device
from harness.cli.execute import execute
from harness.cli.fault_fit import elsewhere, refuse_where_it_is_none, refusing
from harness.cli.folder_help import FolderHelp
from harness.cli.model_types import refuse_unknown_model
from harness.cli.options import (
    DEFAULT_OUT,
    BaselineOption,
    ConfigOption,
    DeviceOption,
    ExpectationsOption,
    FreshOption,
    FreshProcessesOption,
    KeepOption,
    OutOption,
    PreOption,
    PythonOption,
    ResolutionOption,
)
from harness.cli.setup import check_out, check_writable, console, installed_stack, load_setup
from harness.contract.cell_fields import MEANINGS, CellFields
from harness.envs import IndexChooser, open_chooser
from harness.errors import ConfigurationError, nearest
from harness.execution.loading import load_passed
from harness.matrix.catalogue import read_catalogue
from harness.matrix.cell import PINNED, Stack
from harness.matrix.choice import listed
from harness.matrix.completion import complete_stack
from harness.matrix.plan import one_cell
from harness.matrix.too_old import refuse_too_old
from harness.matrix.versions import parse_pin, require_versions, version_help
from harness.report import quantized, shims
from harness.report.remarks import remarks

CHECKPOINTS = ("base", "adapter", "merged")
"""Folders of a work directory that a cell writes, as far as it gets, in this order."""
CATALOGUE = read_catalogue()
"""What the help texts name: whatever lies in the folders."""


def run(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help=FolderHelp(
                MEANINGS["family"],
                CATALOGUE.families,
                folder="harness/worker/checkpoints/families",
                others="Or the model_type of another family with routed experts that the installed transformers knows, "
                "as mixtral.",
            ),
        ),
    ],
    transformers: Annotated[str | None, typer.Option(help=version_help("transformers"))] = None,
    peft: Annotated[str | None, typer.Option(help=version_help("peft"))] = None,
    trl: Annotated[str | None, typer.Option(help=version_help("trl"))] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help=FolderHelp(
                f"{MEANINGS['recipe']} docs/reference/checkpoints.md says what each is.",
                CATALOGUE.recipes,
                folder="harness/worker/recipes",
            )
        ),
    ] = "lora",
    geometry: Annotated[
        str | None,
        typer.Option(
            help=f"{MEANINGS['geometry']} By default the recipe's: {CellFields.geometry}, blocks for QLoRA. "
            f"One of: {', '.join(CATALOGUE.geometries)}."
        ),
    ] = None,
    variant: Annotated[str, typer.Option(help=MEANINGS["variant"])] = CellFields.variant,
    dtype: Annotated[str, typer.Option(help=MEANINGS["dtype"])] = CellFields.dtype,
    engine: Annotated[
        str, typer.Option(help=FolderHelp(MEANINGS["engine"], CATALOGUE.engines, folder="harness/engines"))
    ] = CellFields.engine,
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(min=0, help=MEANINGS["seed"])] = CellFields.seed,
    fault: Annotated[
        str | None, typer.Option(help=f"{MEANINGS['fault']} `harness faults --list` names them.")
    ] = CellFields.fault,
    pin: Annotated[
        list[str] | None, typer.Option(help="Another package's version, as torch==2.12.0. Can be repeated.")
    ] = None,
    pre: PreOption = False,
    resolution: ResolutionOption = PINNED,
    python_version: Annotated[str | None, typer.Option(help="The environment's Python, as 3.12.")] = None,
    python: PythonOption = None,
    out: OutOption = DEFAULT_OUT,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the cell's result here.")] = None,
    keep: KeepOption = False,
    fresh: FreshOption = False,
    fresh_processes: FreshProcessesOption = False,
    config: ConfigOption = None,
    expectations: ExpectationsOption = None,
    baseline: BaselineOption = None,
) -> None:
    """Train, merge, reload and compare one tiny model on one stack, and say whether the merge is right.

    Versions that are not given are completed from the first stack in matrix.toml that has the given ones, else by the
    resolver, which takes the newest that go together. Any release works, declared or not, and so do commits, source
    trees and wheels: docs/reference/selectors.md.

    Examples: [bold]harness run --model qwen3_moe --peft 0.19.1[/],
    [bold]harness run --model qwen3_moe --transformers latest --peft '>=0.19' --trl latest[/]
    """
    check_out(out)
    setup = load_setup(config, expectations)
    chosen = choose_device(device, python)
    screen = console()
    given = {"transformers": transformers, "peft": peft, "trl": trl}
    notes: list[str] = []
    if python is not None:
        stack, sentence = _given_interpreter(python, given, pin, python_version, resolution)
    else:

        @cache
        def chooser() -> IndexChooser:
            return open_chooser(python_version=python_version, log=None)

        completion = complete_stack(
            setup.config,
            given,
            chooser=chooser,
            pins=dict(parse_pin(text) for text in pin or []),
            python=python_version,
            pre=pre,
            resolution=resolution,
        )
        stack, sentence = completion.stack, completion.sentence
        notes = chooser().notes if chooser.cache_info().currsize else []
    cell = one_cell(
        setup.catalogue,
        stack,
        family=model,
        recipe=recipe,
        geometry=geometry,
        variant=variant,
        dtype=dtype,
        engine=engine,
        device=chosen,
        seed=seed,
        fault=fault,
        unmanaged=python is not None,
    )
    if json_file is not None:
        check_writable(json_file, "--json")
    refuse_where_it_is_none(cell, setup.catalogue.facts_of[recipe])
    for line in (sentence, *notes, *elsewhere(cell)):
        screen.print(line, markup=False, soft_wrap=True)
    refuse_too_old([stack])
    refuse_unknown_model(setup.catalogue, model, stack, device=chosen, python=python)
    for line in (*_without_a_file(model), f"cell {cell.id}"):
        screen.print(line, markup=False, soft_wrap=True)
    path = out / "cells" / cell.family / f"{cell.file_stem}.json"
    code, rows = execute(
        setup,
        [cell],
        out=out,
        passed_before=load_passed(baseline or ()),
        jobs=None,
        device=chosen,
        python=python,
        fresh=fresh or fresh_processes,
        keep=keep,
        fresh_processes=fresh_processes,
        console=screen,
        report=False,
        check=refusing(path),
        after_interruption="The same command again runs the cell from its beginning.",
    )
    result = rows[0].result
    for line in filter(None, (*quantized.lines(rows[0]), shims.note(result), *remarks(result))):
        screen.print(line, markup=False, soft_wrap=True)
    screen.print(f"result: {path}", markup=False, soft_wrap=True)
    if keep:
        screen.print(work_directory(out / "work" / cell.family / cell.file_stem), markup=False, soft_wrap=True)
    if json_file is not None:
        json_file.write_text(rows[0].result.model_dump_json(indent=1) + "\n")
    raise typer.Exit(code)


def work_directory(work: Path) -> str:
    """Return a line that says where a cell's work directory is, and which checkpoints are in it."""
    if not work.is_dir():
        return "work directory: none was made, because the cell ended before it wrote anything"
    made = [name for name in CHECKPOINTS if (work / name).is_dir() and any((work / name).iterdir())]
    return f"work directory: {work}, with {listed(made)}" if made else f"work directory: {work}, without a checkpoint"


def _without_a_file(model: str) -> Iterator[str]:
    """Yield a sentence about a family that is not described here, and which of those that are may have been meant."""
    if CATALOGUE.is_described(model):
        return
    near = nearest(model, CATALOGUE.families)
    meant = f" Did you mean {near}?" if near else ""
    yield f"{model} has no file here, so its smallest form is derived from what this transformers knows of it.{meant}"


def _given_interpreter(
    python: Path, given: dict[str, str | None], pins: list[str] | None, python_version: str | None, resolution: str
) -> tuple[Stack, str]:
    """Return the stack of an existing interpreter; a version that was asked for and is another there is an error."""
    if pins or python_version or resolution != PINNED:
        raise ConfigurationError(
            "--pin, --resolution and --python-version choose what is installed; --python takes what is there.",
            remedy="Leave out --python, or the others.",
        )
    stack = installed_stack(python)
    require_versions(stack, given)
    return stack, f"Versions of the interpreter given by --python: {stack.id}."
