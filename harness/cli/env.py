"""``harness env``: the environments in the user's cache."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.filesize import decimal
from tabulate import tabulate

from harness.cli.setup import console
from harness.counting import counted
from harness.envs import cache_dir, clean_environments, list_environments, results_folder
from harness.errors import ConfigurationError
from harness.execution.result_room import ROOM_VARIABLE, forget_results, kept_results, results_room

app = typer.Typer(help="Show and free the environments that stacks run in, and kept results.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """Show every environment: its stack, its size (and what removing it frees), when it was last used; kept results."""
    found = list_environments()
    rows = []
    for item in found:
        state = "in use" if item.in_use else "ready" if item.complete else "half-made"
        used = datetime.fromtimestamp(item.last_used, UTC).strftime("%Y-%m-%d %H:%M")
        sizes = (decimal(item.apparent_bytes), decimal(item.real_bytes))
        rows.append((item.id, item.stack or "?", *sizes, used, state))
    if rows:
        headers = ("id", "stack", "size", "frees", "last used", "state")
        typer.echo(tabulate(rows, headers=headers, tablefmt="plain", disable_numparse=True))
    typer.echo(f"{counted(len(found), 'environment')} in {cache_dir()}")
    results = kept_results(results_folder())
    whole = sum(entry.whole for entry in results)
    room, taken = results_room(), decimal(sum(entry.size for entry in results))
    typer.echo(f"{counted(whole, 'result')} kept for later runs: {taken} of {decimal(room)} ({ROOM_VARIABLE})")


@app.command()
def clean(
    ids: Annotated[list[str] | None, typer.Argument(help="Only these; the beginning of an id is enough.")] = None,
    older_than: Annotated[
        float | None, typer.Option("--older-than", min=0, metavar="DAYS", help="Only those unused for so long.")
    ] = None,
    locks: Annotated[
        bool, typer.Option("--locks", help="Forget locks too, so that every stack is resolved again.")
    ] = False,
    results: Annotated[
        bool, typer.Option("--results", help="Forget results that were kept for later runs, and remove no environment.")
    ] = False,
) -> None:
    """Remove environments. One that is in use stays, and is said to."""
    screen = console()
    if results:
        if ids or locks:
            raise ConfigurationError("--results is about no environment.", remedy="Leave out ids and --locks.")
        forgotten = forget_results(results_folder(), older_than_days=older_than)
        freed = sum(entry.size for entry in forgotten)
        screen.print(f"forgot {counted(len(forgotten), 'result')}, {decimal(freed)} freed")
        return
    removed = clean_environments(ids or None, older_than_days=older_than, locks=locks, log=screen.print)
    freed = sum(item.real_bytes for item in removed)
    screen.print(f"removed {counted(len(removed), 'environment')}, {decimal(freed)} freed")
