"""``harness plan``: what would run."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from tabulate import tabulate

from harness.cli.device import choose_device
from harness.cli.options import (
    ConfigOption,
    DeviceOption,
    ExpectationsOption,
    ProfileOption,
    SelectOption,
    ShardOption,
    StackOption,
)
from harness.cli.setup import load_setup
from harness.counting import counted
from harness.matrix.plan import (
    COLUMNS,
    DEFAULT_PROFILE,
    Selection,
    github_matrix,
    parse_shard,
    plan_cells,
    plan_json,
    plan_rows,
)


def plan(
    profile: ProfileOption = DEFAULT_PROFILE,
    select: SelectOption = None,
    stack: StackOption = None,
    shard: ShardOption = None,
    device: DeviceOption = "cpu",
    output: Annotated[
        Literal["table", "json", "github"],
        typer.Option("--format", help="table for people, json for programs, github for a workflow's matrix."),
    ] = "table",
    config: ConfigOption = None,
    expectations: ExpectationsOption = None,
) -> None:
    """Show the cells that a profile or a selection means, without running any.

    Example: [bold]harness plan --profile nightly --select 'deepseek_v3/*' --format json[/]
    """
    setup = load_setup(config, expectations)
    selection = Selection(
        profile=profile,
        stacks=tuple(stack or ()),
        select=tuple(select or ()),
        shard=parse_shard(shard) if shard else (1, 1),
        device=choose_device(device, None),
    )
    cells = plan_cells(setup.config, setup.catalogue, selection)
    if output == "json":
        typer.echo(plan_json(cells, selection))
        return
    if output == "github":
        typer.echo(github_matrix(cells, selection))
        return
    rows = [[row[column] for column in COLUMNS] for row in plan_rows(cells)]
    typer.echo(tabulate(rows, headers=COLUMNS, tablefmt="plain", disable_numparse=True))
    stacks = len({cell.stack.id for cell in cells})
    typer.echo(f"{counted(len(cells), 'cell')} on {counted(stacks, 'stack')}")
