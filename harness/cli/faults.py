"""``harness faults``: the catalogue of what is broken on purpose, each planted in a real cell."""

from __future__ import annotations

import fnmatch
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from packaging.version import Version
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.cli.execute import execute
from harness.cli.fault_fit import USUAL
from harness.cli.options import ConfigOption, FreshProcessesOption, JobsOption, KeepOption
from harness.cli.setup import Setup, check_out, check_writable, console, load_setup
from harness.errors import ConfigurationError, NothingSelectedError
from harness.execution.result_cache import ResultCache
from harness.execution.store import alone_in
from harness.faults import fault, place_of
from harness.matrix.cell import Cell, Stack
from harness.matrix.names import match_names
from harness.matrix.plan import one_cell
from harness.report import last_run
from harness.report.fault_table import FaultReport, fault_json, fault_markdown, fault_report

OUT = Path("results/faults")


def faults(
    select: Annotated[
        list[str] | None,
        typer.Option("--select", help="Only faults whose name or place/name matches this glob. Can be repeated."),
    ] = None,
    stack: Annotated[
        str | None, typer.Option("--stack", help="The declared stack to plant them in. Default: the newest.")
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Name the faults and run nothing.")] = False,
    jobs: JobsOption = None,
    out: Annotated[Path, typer.Option("--out", help="Where results, logs and the table are written.")] = OUT,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the table here, as JSON.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take over what an interrupted run into --out had finished.")
    ] = False,
    publish: Annotated[
        Path | None,
        typer.Option(
            "--publish", help="Also write the table here, and its sentence into the package, for the head of reports."
        ),
    ] = None,
    keep: KeepOption = False,
    fresh_processes: FreshProcessesOption = False,
    config: ConfigOption = None,
) -> None:
    """Plant every known fault in a cell, one at a time, and say whether the checks notice it.

    A fault is a scoped patch of a library, of the engine, or of the files that a cell has made. The same cells are run
    with nothing planted, and must pass.

    Example: [bold]harness faults --select 'training/*'[/]
    """
    setup = load_setup(config, None)
    names = _selected(setup.catalogue.faults, select or [])
    screen = console()
    if list_only:
        for name in names:
            screen.print(f"{place_of(name)}/{name}  {fault(name).breaks}", markup=False, soft_wrap=True)
        return
    check_out(out)
    if json_file is not None:
        check_writable(json_file, "--json")
    if publish is not None and (select or stack):
        raise ConfigurationError("--publish is for the whole catalogue.", remedy="Leave --select and --stack out.")
    cells = planned(setup, names, _stack(setup, stack))
    with alone_in(out):
        _, rows = execute(
            setup,
            cells,
            out=out,
            jobs=jobs,
            device="cpu",
            python=None,
            fresh=not resume,
            keep=keep,
            fresh_processes=fresh_processes,
            console=screen,
            report=False,
            show=False,
            after_interruption="The same command with --resume does the rest.",
            # Nothing of a cell with a planted fault is in the user's cache.
            results=ResultCache(out / ".resume", planted=True),
        )
    report = fault_report([row.result for row in rows])
    _show(screen, report)
    ran = f"run on {datetime.now(UTC):%Y-%m-%d}{_commit()}"
    for folder in filter(None, (out, publish)):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("faults.md", fault_markdown), ("faults.json", fault_json)):
            (folder / name).write_text(text(report, ran=ran), encoding="utf-8")
    if publish is not None:
        last_run.publish(report.sentence, ran)
    if json_file is not None:
        json_file.write_text(fault_json(report, ran=ran), encoding="utf-8")
    screen.print(f"table: {out / 'faults.md'}", markup=False, soft_wrap=True)
    raise typer.Exit(int(not report.as_it_must_be))


def planned(setup: Setup, names: Sequence[str], stack: Stack) -> tuple[Cell, ...]:
    """Return the cells to run: each fault's, and each of these once with nothing planted, before them."""
    planted = [one_cell(setup.catalogue, _stack_of(setup, name, stack), **_fields(name), fault=name) for name in names]
    clean = {(cell := it.model_copy(update={"fault": None})).id: cell for it in planted}
    return (*clean.values(), *planted)


def _fields(name: str) -> dict[str, str]:
    return {**USUAL, **{key: value for key, value in fault(name).cell.items() if key != "stack"}}


def _stack_of(setup: Setup, name: str, stack: Stack) -> Stack:
    """Return the stack that a fault asks for, or the one that was chosen for all."""
    asked = fault(name).cell.get("stack")
    return stack if asked is None else next(it for it in setup.config.declared if it.id == asked)


def _stack(setup: Setup, asked: str | None) -> Stack:
    declared = {stack.id: stack for stack in setup.config.declared}
    if asked is None:
        return max(declared.values(), key=lambda it: (Version(it.transformers), Version(it.peft), Version(it.trl)))
    return declared[match_names([asked], tuple(declared), "stack", "--stack")[0]]


def _selected(names: Sequence[str], globs: Sequence[str]) -> tuple[str, ...]:
    """Return the faults that any of the globs matches, by name or by place and name.

    Raises:
        NothingSelectedError: a glob matches none.
    """
    chosen: set[str] = set()
    for glob in globs:
        found = {name for name in names if fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(_path(name), glob)}
        if not found:
            raise NothingSelectedError(f"{glob!r} matches no fault.", remedy="`harness faults --list` names them all.")
        chosen |= found
    return tuple(name for name in names if name in chosen or not globs)


def _path(name: str) -> str:
    return f"{place_of(name)}/{name}"


def _show(screen: Console, report: FaultReport) -> None:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for title in ("where", "fault", "became", "noticed by"):
        table.add_column(Text(title), overflow="fold")
    for row in report.rows:
        style = "green" if row.state == "noticed" else "yellow" if row.as_declared else "bold red"
        state = f"{row.state} (known)" if row.blind else row.state
        table.add_row(Text(row.place), Text(row.name), Text(state, style=style), Text(", ".join(row.by)))
    screen.print()
    screen.print(table)
    for row in report.rows:
        if not row.as_declared:
            surprise = " (it is said to be a blind spot)" if row.blind else ""
            screen.print(f"{row.cell_id}: {row.sentence}{surprise}", style="red", markup=False, soft_wrap=True)
    for cell, reason in report.false_alarms.items():
        screen.print(f"false alarm: {cell}: {reason}", style="red", markup=False, soft_wrap=True)
    screen.print(report.sentence, style="bold green" if report.as_it_must_be else "bold red", markup=False)


def _commit() -> str:
    """Return of which commit a run is, where this is a checkout of one."""
    root = Path(__file__).resolve().parents[2]
    said = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short=10", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f", of commit {said.stdout.strip()}" if said.returncode == 0 else ""
