"""``harness run``: one cell, named by its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.execute import execute
from harness.cli.options import (
    DEFAULT_OUT,
    ConfigOption,
    DeviceOption,
    ExpectationsOption,
    KeepOption,
    OutOption,
    PythonOption,
)
from harness.cli.setup import choose_device, console, load_setup
from harness.envs import newest_release, unmanaged_environment
from harness.errors import ConfigurationError
from harness.matrix.cell import MAIN_PACKAGES
from harness.matrix.plan import one_cell
from harness.matrix.versions import complete_stack, parse_pin


def run(
    model: Annotated[str, typer.Option("--model", help="Model family: qwen3_moe, glm4_moe, deepseek_v3, qwen3_5_moe.")],
    transformers: Annotated[str | None, typer.Option(help="Version of transformers, as 5.5.0.")] = None,
    peft: Annotated[str | None, typer.Option(help="Version of peft.")] = None,
    trl: Annotated[str | None, typer.Option(help="Version of trl.")] = None,
    recipe: Annotated[str, typer.Option(help="What is trained: lora, lora-attention, lora-experts, …")] = "lora",
    geometry: Annotated[
        str, typer.Option(help="Preset of sizes: distinct, square-gate-up, square-down, narrow, …")
    ] = "distinct",
    variant: Annotated[
        str, typer.Option(help="How the checkpoint lies on disk, where a family has several forms.")
    ] = "published",
    dtype: Annotated[str, typer.Option(help="How the checkpoint is stored: float32 or bf16.")] = "float32",
    engine: Annotated[str, typer.Option(help="What merges.")] = "reference",
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, data and LoRA initialisation.")] = 0,
    b_packing: Annotated[
        str | None,
        typer.Option(
            help="Tell the engine how lora_B is packed, right or wrong: a fault planted on purpose, to watch the gates."
        ),
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option(help="Another package's version, as torch==2.12.0. Can be repeated.")
    ] = None,
    python_version: Annotated[str | None, typer.Option(help="The environment's Python, as 3.12.")] = None,
    python: PythonOption = None,
    out: OutOption = DEFAULT_OUT,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the cell's result here.")] = None,
    keep: KeepOption = False,
    config: ConfigOption = None,
    expectations: ExpectationsOption = None,
) -> None:
    """Train, merge, reload and compare one tiny model on one stack, and say whether the merge is right.

    Versions that are not given are completed from the first stack in matrix.toml that has the given ones, else from the
    newest release of each. Any release works, declared or not.

    Example: [bold]harness run --model qwen3_moe --peft 0.19.1[/]
    """
    setup = load_setup(config, expectations)
    chosen = choose_device(device, python)
    screen = console()
    given = {"transformers": transformers, "peft": peft, "trl": trl}
    if python is not None:
        given = _installed(python, given)
    completion = complete_stack(
        setup.config,
        given,
        newest=newest_release,
        pins=dict(parse_pin(text) for text in pin or []),
        python=python_version,
    )
    cell = one_cell(
        setup.catalogue,
        completion.stack,
        family=model,
        recipe=recipe,
        geometry=geometry,
        variant=variant,
        dtype=dtype,
        engine=engine,
        device=chosen,
        seed=seed,
        b_packing=b_packing,
        unmanaged=python is not None,
    )
    screen.print(completion.sentence, markup=False, soft_wrap=True)
    screen.print(f"cell {cell.id}", markup=False, soft_wrap=True)
    code, rows = execute(
        setup,
        [cell],
        out=out,
        jobs=1,
        device=chosen,
        python=python,
        resume=False,
        keep=keep,
        console=screen,
        report=False,
    )
    path = out / "cells" / cell.family / f"{cell.file_stem}.json"
    screen.print(f"result: {path}", markup=False, soft_wrap=True)
    if keep:
        screen.print(f"work directory: {out / 'work'}", markup=False, soft_wrap=True)
    if json_file is not None:
        _copy_result(rows[0].result.model_dump_json(indent=1), json_file)
    raise typer.Exit(code)


def _installed(python: Path, given: dict[str, str | None]) -> dict[str, str | None]:
    """Return the versions that an existing interpreter has; one that was asked for and is another there is an error."""
    versions = unmanaged_environment(python).versions
    for name in MAIN_PACKAGES:
        if name not in versions:
            raise ConfigurationError(f"--python {python}: {name} is not installed there.")
        if given[name] is not None and given[name] != versions[name]:
            raise ConfigurationError(
                f"--{name} {given[name]}: the interpreter given by --python has {name} {versions[name]}.",
                remedy=f"Leave out --{name}, or leave out --python.",
            )
    return {name: versions[name] for name in MAIN_PACKAGES}


def _copy_result(text: str, path: Path) -> None:
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise ConfigurationError(f"--json {path}: {error.strerror}.") from error
