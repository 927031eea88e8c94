"""``harness matrix``: a whole profile, one scheduler, one table."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.device import choose_device
from harness.cli.execute import execute, users_results
from harness.cli.folder_help import FolderHelp
from harness.cli.known_families import with_known_families
from harness.cli.options import (
    DEFAULT_OUT,
    BaselineOption,
    ConfigOption,
    DeviceOption,
    ExpectationsOption,
    FreshOption,
    FreshProcessesOption,
    JobsOption,
    KeepOption,
    OutOption,
    ProfileOption,
    PythonOption,
    SelectOption,
    ShardOption,
    StackOption,
)
from harness.cli.selections import expand_selections
from harness.cli.setup import check_out, console, installed_stack, load_setup
from harness.execution.executors import executor as make_executor
from harness.execution.executors import executor_names
from harness.execution.loading import load_passed
from harness.execution.store import alone_in
from harness.matrix.plan import DEFAULT_PROFILE, Selection, parse_shard, plan_cells


def matrix(
    profile: ProfileOption = DEFAULT_PROFILE,
    select: SelectOption = None,
    stack: StackOption = None,
    jobs: JobsOption = None,
    shard: ShardOption = None,
    executor: Annotated[
        str, typer.Option(help=FolderHelp("Where cells run.", executor_names(), folder="harness/execution/executors"))
    ] = "local",
    device: DeviceOption = "cpu",
    python: PythonOption = None,
    out: OutOption = DEFAULT_OUT,
    keep: KeepOption = False,
    fresh: FreshOption = False,
    fresh_processes: FreshProcessesOption = False,
    config: ConfigOption = None,
    expectations: ExpectationsOption = None,
    baseline: BaselineOption = None,
) -> None:
    """Run every cell of a profile and write the version-compat report.

    Each stack gets an isolated environment; each cell runs in processes of its own, and whatever happens to one the
    others go on. Exits with 1 on a failure that nobody declared or an unexpected pass; failures declared in
    expectations.toml do not make a run red.

    Example: [bold]harness matrix --profile smoke[/]
    """
    make_executor(executor)  # one that is not there is said before anything is asked or made
    check_out(out)
    setup = load_setup(config, expectations)
    chosen = choose_device(device, python)
    screen = console()
    installed = installed_stack(python) if python is not None else None
    generated = expand_selections(
        setup, profile, say=lambda line: screen.print(line, markup=False, soft_wrap=True), installed=installed
    )
    selection = Selection(
        profile=profile,
        stacks=tuple(stack or ()),
        select=tuple(select or ()),
        shard=parse_shard(shard) if shard else (1, 1),
        device=chosen,
        unmanaged=python is not None,
        stack=installed,
        generated=generated,
    )
    selection = with_known_families(
        setup, selection, say=lambda line: screen.print(line, markup=False, soft_wrap=True), python=python
    )
    cells = plan_cells(setup.config, setup.catalogue, selection)
    with alone_in(out):
        code, _ = execute(
            setup,
            cells,
            out=out,
            passed_before=load_passed(baseline or ()),
            jobs=jobs,
            device=chosen,
            python=python,
            fresh=fresh or fresh_processes,
            keep=keep,
            fresh_processes=fresh_processes,
            executor=executor,
            urgent=frozenset().union(*(it.new for it in generated.values())),
            console=screen,
            report=True,
            after_interruption=_rest(
                fresh=fresh, fresh_processes=fresh_processes, keep=keep, unmanaged=python is not None
            ),
        )
    raise typer.Exit(code)


def _rest(*, fresh: bool, fresh_processes: bool, keep: bool, unmanaged: bool) -> str:
    """Return which command does the rest of an interrupted run."""
    if unmanaged or users_results() is None:
        return "The same command again runs every cell: of this run no result is kept for a later one."
    options = (("--fresh", fresh), ("--fresh-processes", fresh_processes), ("--keep", keep))
    given = [option for option, on in options if on]
    how = f"without {' and '.join(given)}" if given else "again"
    return f"The same command {how} does the rest: what this one has finished is kept."
