"""``harness doctor``: what this machine offers, and what would stand in the way."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator

import psutil
import typer
from rich.filesize import decimal

from harness import __version__
from harness.cli.setup import console
from harness.envs import cache_dir, newest_release
from harness.envs.layout import CacheLayout
from harness.envs.uv_command import find_uv
from harness.errors import EnvironmentFailedError, HarnessError

ROOM_WANTED = 8 * 10**9
"""A CPU stack is 1.3 GB apparent; six share most of it, and uv's cache holds it once."""


PROBE = "peft"
"""What the indexes are asked for: one of the three packages, of which any index that is of use has a release."""


def doctor() -> None:
    """Show interpreter, cores, memory, disk, uv and package indexes, and end with a verdict.

    The last line is ready, or not ready and why; then the exit code is 4.
    """
    screen = console()
    screen.print(
        f"moe-lora-harness {__version__}, Python {platform.python_version()} "
        f"on {platform.system()} {platform.machine()}"
    )
    screen.print(f"cores {len(os.sched_getaffinity(0))}, memory {decimal(psutil.virtual_memory().total)}")
    problems = list(_problems(lambda line: screen.print(line, markup=False, soft_wrap=True)))
    if not problems:
        screen.print("ready", style="green")
        return
    screen.print(f"not ready: {'; '.join(problems)}", style="red", markup=False, soft_wrap=True)
    raise typer.Exit(EnvironmentFailedError.exit_code)


def _problems(say: Callable[[str], None]) -> Iterator[str]:
    """Yield what stands in the way of making an environment; ``say`` is told what is found."""
    cache = cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
    except OSError as error:
        yield f"the cache folder {cache} cannot be made ({error.strerror}): name another in MOE_LORA_HARNESS_CACHE"
        return
    say(f"cache {cache}, {decimal(free)} free")
    if free < ROOM_WANTED:
        yield f"less than {decimal(ROOM_WANTED)} free, so environments may not fit: free some space"
    try:
        uv = find_uv(CacheLayout(cache).working_folder, None)
    except HarnessError as error:
        yield _in_words("uv", error)
        return
    say(f"uv {uv.version}")
    for decision in uv.indexes.decisions:
        say(f"indexes: {decision}")
    try:
        say(f"indexes: asked for {PROBE}, whose newest release is {newest_release(PROBE)}")
    except HarnessError as error:
        yield _in_words("indexes", error)


def _in_words(what: str, error: HarnessError) -> str:
    """Return an error on one line, with what to do about it."""
    remedy = f" ({error.remedy.rstrip('.')})" if error.remedy else ""
    return f"{what}: {' '.join(error.message.split()).rstrip('.')}{remedy}"
