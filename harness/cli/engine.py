"""Running the merge engine's programs as processes, where torch is.

They have a progress bar, or lines in a log. Their last event is returned. The programs need torch and nothing else.
Where the harness has none, they run in the environment of the first declared stack.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from functools import partial
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from harness.cli.merge_remedies import remedy_of
from harness.cli.progress_lines import ProgressLines
from harness.cli.setup import load_setup
from harness.envs import cache_dir, ensure_environment, has_environment
from harness.errors import HarnessError, InterruptedByUserError
from harness.execution.bundle import publish_bundle

SIZE = "1.3 GB"
"""Of a stack's environment, by `harness env list`."""
RESULTS = frozenset({0, 1})
"""Exit codes of a program that finished: all well, or a check failed."""


class EngineFailedError(HarnessError):
    """A program refused or failed; its own message, remedy and exit code."""

    def __init__(self, message: str, remedy: str, exit_code: int) -> None:
        super().__init__(message, remedy=remedy)
        self.exit_code = exit_code


def engine_command(package: str, screen: Console) -> list[str]:
    """Return how the program in ``package`` (``harness.merge.auditing``) is started.

    It runs here when torch is here, else in a stack's environment.
    """
    program = str(publish_bundle(cache_dir()).root.joinpath(*package.split("."), "__main__.py"))
    if importlib.util.find_spec("torch") is not None:
        # -P: the folder of the program stays off the path, where its modules could pass for the standard library's.
        return [sys.executable, "-P", "-u", program]
    stack = load_setup().config.declared[0]
    screen.print(f"no torch here: running in the environment of {stack.id}", soft_wrap=True)
    if not has_environment(stack.id):
        screen.print(f"making that environment in {cache_dir()}: once, about {SIZE} on disk", soft_wrap=True)
    return [str(ensure_environment(stack).python), "-I", "-u", program]


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def run_engine(command: list[str], screen: Console, label: str) -> dict[str, Any]:
    """Run a program, show its progress, and return its last event.

    Raises:
        EngineFailedError: it refused, failed or died.
    """
    last: dict[str, Any] = {}
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress,
        subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process,
    ):
        task = progress.add_task(label, total=None)
        lines = ProgressLines(label, partial(screen.print, soft_wrap=True, markup=False))
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
                signal.signal(number, _interrupt)
        assert process.stdout is not None  # noqa: S101 - Popen was asked for a pipe
        try:
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "progress":
                    progress.update(task, completed=event["done"], total=event["total"])
                    if not screen.is_terminal:
                        lines.update(event["done"], event["total"])
                elif event["event"] == "note":
                    screen.print(f"note: {event['text']}", markup=False, soft_wrap=True)
                else:
                    last = event
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise InterruptedByUserError("interrupted; nothing was published.") from None
    if last.get("event") == "error":
        raise EngineFailedError(last["message"], remedy_of(last), last["exit_code"])
    if process.returncode not in RESULTS or not last:
        raise EngineFailedError(
            f"the engine's process ended with code {process.returncode}.",
            "A negative code is a signal, and -9 mostly a want of memory: try fewer --threads. Else please report it "
            "with what stands above.",
            1,
        )
    return last
