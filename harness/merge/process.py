"""What the engine's programs share as processes: options in, JSON lines out, exit code from the error's class.

One line per event on standard output: ``{"event": "progress", "done": …, "total": …}`` (bytes, about a hundred of
them), then one that holds the result, or ``{"event": "error", "class": …, "message": …, "remedy": …, "exit_code": …}``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from harness.merge.errors import MergeError, UsageError

INTERRUPTED = 130
STEPS = 100
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def say(event: str, values: dict[str, object]) -> None:
    """Write one event to standard output."""
    try:
        sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever asked for this is gone, and with it the reason to go on. What is left unwritten goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise KeyboardInterrupt from None


def progress() -> Callable[[int, int], None]:
    """Return a progress callback that prints only when another hundredth is done."""
    last = -1

    def show(done: int, total: int) -> None:
        nonlocal last
        step = done * STEPS // max(total, 1)
        if step != last:
            last = step
            say("progress", {"done": done, "total": total})

    return show


class Parser(argparse.ArgumentParser):
    """Reports a usage error as an event, like every other error."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise UsageError(message, self.format_usage().strip())


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    # A terminal's Ctrl-C comes from the terminal and from the caller; only the first may interrupt, or cleaning up
    # would be.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(program: Callable[[], int]) -> int:
    """Run a program and return its exit code: its own, or that of the error that ended it (1, 2, 5), or 130."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
            signal.signal(number, _interrupt)
    try:
        return program()
    except MergeError as error:
        say("error", error.to_json())
        return error.exit_code
    except KeyboardInterrupt:
        say("error", {"class": "Interrupted", "message": "interrupted", "remedy": None, "exit_code": INTERRUPTED})
        return INTERRUPTED
