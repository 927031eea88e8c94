"""``harness doctor``: what this machine offers, and what would stand in the way."""

from __future__ import annotations

import os
import platform
import shutil

import psutil
import typer
from rich.filesize import decimal

from harness import __version__
from harness.cli.setup import console
from harness.envs import cache_dir
from harness.envs.layout import CacheLayout
from harness.envs.uv_command import find_uv
from harness.errors import HarnessError

ROOM_WANTED = 8 * 10**9
"""A CPU stack is 1.3 GB apparent; six share most of it, and uv's cache holds it once."""


def doctor() -> None:
    """Show interpreter, cores, memory, disk, uv and the package indexes in use; exit 4 when something is missing."""
    screen = console()
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    screen.print(
        f"moe-lora-harness {__version__}, Python {platform.python_version()} "
        f"on {platform.system()} {platform.machine()}"
    )
    screen.print(f"cores {len(os.sched_getaffinity(0))}, memory {decimal(psutil.virtual_memory().total)}")
    screen.print(f"cache {cache}, {decimal(free)} free", soft_wrap=True)
    healthy = free >= ROOM_WANTED
    if not healthy:
        screen.print(f"[yellow]less than {decimal(ROOM_WANTED)} free: environments may not fit[/]")
    try:
        uv = find_uv(CacheLayout(cache).working_folder, None)
    except HarnessError as error:
        screen.print(f"[red]uv: {error.message}[/]", soft_wrap=True)
        raise typer.Exit(error.exit_code) from None
    screen.print(f"uv {uv.version}")
    for decision in uv.indexes.decisions:
        screen.print(f"indexes: {decision}", markup=False, soft_wrap=True)
    raise typer.Exit(0 if healthy else 4)
