"""``harness plan``: what would run, why, what is there already, and how long it takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from tabulate import tabulate

from harness.cli.device import choose_device
from harness.cli.execute import cell_settings, may_be_reused, users_results
from harness.cli.known_families import with_known_families
from harness.cli.options import (
    DEFAULT_OUT,
    ConfigOption,
    DeviceOption,
    ExpectationsOption,
    FreshOption,
    ProfileOption,
    SelectOption,
    ShardOption,
    StackOption,
)
from harness.cli.selections import expand_selections
from harness.cli.setup import Setup, load_setup
from harness.counting import counted
from harness.envs import Prepared, child_environment, prepared_environments
from harness.execution.bundle import bundle_sha256
from harness.execution.durations import recorded_seconds
from harness.execution.fingerprint import Fingerprints
from harness.execution.progress import duration
from harness.matrix.cell import Cell, Stack
from harness.matrix.durations import expected_durations, makespan
from harness.matrix.plan import DEFAULT_PROFILE, Selection, parse_shard, plan_cells, reasons
from harness.matrix.plan_views import (
    COLUMNS,
    LEGEND,
    OUTLOOK_COLUMNS,
    Outlook,
    github_matrix,
    outlook_columns,
    plan_json,
    plan_rows,
)
from harness.matrix.releases import utc


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
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            "--results",
            help="Where earlier results lie, which say how long cells take. Default: results. Can be repeated.",
        ),
    ] = None,
    fresh: FreshOption = False,
    config: ConfigOption = None,
    expectations: ExpectationsOption = None,
) -> None:
    """Show the cells that a profile or a selection means, without running any.

    Of each it says why it would run (which block of the profile, which selectors), whether its environment is there,
    whether an earlier run has kept its result (then it is not run), and how long it takes, from earlier results: a time
    with ~ is that of the same cell on other stacks.

    Example: [bold]harness plan --profile nightly --select 'deepseek_v3/*' --json[/]
    """
    setup = load_setup(config, expectations)
    selection = Selection(
        profile=profile,
        stacks=tuple(stack or ()),
        select=tuple(select or ()),
        shard=parse_shard(shard) if shard else (1, 1),
        device=choose_device(device, None),
        generated=expand_selections(setup, profile, say=lambda line: typer.echo(line, err=True)),
    )
    selection = with_known_families(setup, selection, say=lambda line: typer.echo(line, err=True))
    cells = plan_cells(setup.config, setup.catalogue, selection)
    if output == "github" and not as_json:
        typer.echo(github_matrix(cells, selection))
        return
    stacks = {cell.stack.key: cell.stack for cell in cells}
    prepared = prepared_environments(stacks.values(), device=selection.device)
    kept = {} if fresh else _kept(setup, cells, prepared)
    outlooks = _outlooks(setup, cells, selection, prepared, results or [DEFAULT_OUT], kept)
    if output == "json" or as_json:
        typer.echo(plan_json(cells, selection, outlooks))
        return
    columns = (*COLUMNS, *OUTLOOK_COLUMNS)
    named = [row | outlook_columns(outlooks[row["id"]]) for row in plan_rows(cells)]
    rows = [[row[column] for column in columns] for row in named]
    typer.echo(tabulate(rows, headers=columns, tablefmt="plain", disable_numparse=True))
    typer.echo("\n" + "\n".join(LEGEND) + "\n")
    typer.echo(_summary(setup, cells, list(stacks.values()), outlooks, prepared))


def _outlooks(
    setup: Setup,
    cells: Sequence[Cell],
    selection: Selection,
    prepared: Prepared,
    results: Sequence[Path],
    kept: Mapping[str, float],
) -> dict[str, Outlook]:
    """Return what is known of each cell, by its id."""
    why = reasons(setup.config, setup.catalogue, selection)
    durations = expected_durations(cells, recorded_seconds(results))
    return {
        cell.id: Outlook(
            why=why[cell.id],
            environment=prepared.has(cell.stack),
            kept=kept.get(cell.id),
            duration=durations.get(cell.id),
        )
        for cell in cells
    }


def _kept(setup: Setup, cells: Sequence[Cell], prepared: Prepared) -> dict[str, float]:
    """Return how old the kept results are that would be reused, in seconds, by the ids of their cells."""
    results = users_results()
    if results is None:
        return {}
    now = datetime.now(UTC)
    fingerprints = Fingerprints(
        code_sha256=bundle_sha256(),
        settings=lambda cell: cell_settings(setup, cell, threads=1),
        child_environment=child_environment,
    )
    found: dict[str, float] = {}
    for cell in cells:
        if not may_be_reused(setup, cell):
            continue
        key = fingerprints.of(cell, prepared.identities.get(cell.stack.key))
        one = results.find(cell, key, warn=lambda line: typer.echo(line, err=True))
        if one is not None:
            found[cell.id] = (now - utc(one.result.started or "")).total_seconds()
    return found


def _summary(
    setup: Setup,
    cells: Sequence[Cell],
    stacks: Sequence[Stack],
    outlooks: Mapping[str, Outlook],
    prepared: Prepared,
) -> str:
    """Return how many there are, what has to be made, and about how long it all takes on this machine."""
    to_run = [cell for cell in cells if outlooks[cell.id].kept is None]
    wanted = {cell.stack.key for cell in to_run}
    absent = sum(not prepared.has(stack) and stack.key in wanted for stack in stacks)
    there = sum(prepared.has(stack) for stack in stacks)
    what = f"{counted(len(cells), 'cell')} on {counted(len(stacks), 'stack')}"
    what = f"{what}; {counted(absent, 'environment')} to be made, {there} there"
    if reused := len(cells) - len(to_run):
        what = f"{what}; {counted(reused, 'result')} kept, {counted(len(to_run), 'cell')} to run"
    if not to_run:
        return what
    known = [it for cell in to_run if (it := outlooks[cell.id].duration) is not None]
    if not known:
        return f"{what}\nhow long it takes is not known: no earlier results (--results)"
    jobs, _ = setup.config.limits.share(len(os.sched_getaffinity(0)))
    seconds = makespan([it.seconds for it in known], jobs=jobs)
    making = absent * (prepared.seconds_each or 0.0)
    own = sum(it.basis == "recorded" for it in known)
    return (
        f"{what}\nabout {duration(seconds + making)} with {counted(jobs, 'cell')} at a time: {own} by their own last "
        f"time, {len(known) - own} by the same cell on other stacks, {len(to_run) - len(known)} unknown and not counted"
    )
