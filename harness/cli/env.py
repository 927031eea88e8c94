"""``harness env``: the environments in the user's cache."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from harness.cli.setup import console
from harness.envs import cache_dir, clean_environments, list_environments

app = typer.Typer(help="Show and free the environments that stacks run in.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """Show every environment: its stack, its size (and what removing it frees), when it was last used."""
    screen = console()
    found = list_environments()
    table = Table(box=None, pad_edge=False)
    for column in ("id", "stack", "size", "frees", "last used", "state"):
        table.add_column(column, no_wrap=True)
    for item in found:
        state = "in use" if item.in_use else "ready" if item.complete else "half-made"
        used = datetime.fromtimestamp(item.last_used, UTC).strftime("%Y-%m-%d %H:%M")
        table.add_row(item.id, item.stack or "?", decimal(item.apparent_bytes), decimal(item.real_bytes), used, state)
    if found:
        screen.print(table, crop=False, soft_wrap=True)
    screen.print(f"{len(found)} environments in {cache_dir()}", soft_wrap=True)


@app.command()
def clean(
    ids: Annotated[list[str] | None, typer.Argument(help="Only these; the beginning of an id is enough.")] = None,
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", help="Only those unused for so long.")
    ] = None,
    locks: Annotated[
        bool, typer.Option("--locks", help="Forget locks too, so that every stack is resolved again.")
    ] = False,
) -> None:
    """Remove environments. One that is in use stays, and is said to."""
    screen = console()
    removed = clean_environments(ids or None, older_than_days=older_than, locks=locks, log=screen.print)
    freed = sum(item.real_bytes for item in removed)
    screen.print(f"removed {len(removed)} environments, {decimal(freed)} freed")
