"""The entry of a measured process: import, say so, wait, run, report. Standard library only, whatever the interpreter.

``python -I -u <copy>/harness/bench/measured.py MODULE REQUEST``: MODULE has ``load()``, which imports the libraries,
and ``run(request)``, which is timed. Between the two the process prints ``ready`` and waits for a line on its standard
input, so that the driver can drop or fill the page cache and let the disk come to rest. Two lines of JSON go to the
real standard output; whatever a library prints goes to standard error.

Memory is what the process holds above the moment before ``run``: the high-water mark of resident memory is reset there
(``clear_refs``) or, where the kernel does not allow that, the one since the start is taken, which can only be larger;
the result says which.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Resets VmHWM to what is resident now; see proc(5)."""


def resident(field: str) -> int:
    """Return ``VmRSS`` (now) or ``VmHWM`` (at most, since the last reset) of this process in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def reset_peak() -> bool:
    """Forget the high-water mark; return whether the kernel did."""
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def of_children() -> int:
    """Return the largest resident size of any child that has ended, in bytes."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def main() -> int:
    """Run the module that is named; return 0, or 1 with the error as the last line."""
    module, request = sys.argv[1], json.loads(sys.argv[2])
    # Libraries print; what the driver reads must stay clean.
    talk = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(values: dict[str, Any]) -> None:
        talk.write(json.dumps(values) + "\n")
        talk.flush()

    started = time.perf_counter()
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    try:
        program = importlib.import_module(module)
        versions = program.load()
        say({"event": "ready", "import_seconds": time.perf_counter() - started, "versions": versions})
        sys.stdin.readline()
        was_reset = reset_peak()
        before = resident("VmRSS")
        started = time.perf_counter()
        found = program.run(request)
        seconds = time.perf_counter() - started
        peak = resident("VmHWM") + of_children()
    except Exception as error:  # noqa: BLE001 - whatever ends a contender is its result
        with contextlib.suppress(Exception):
            import traceback  # noqa: PLC0415 - only here

            traceback.print_exc()
        say({"event": "failed", "reason": f"{type(error).__name__}: {error}"})
        return 1
    say({
        "event": "done",
        "seconds": seconds,
        "rss_before": before,
        "rss_above": max(0, peak - before),
        "peak_was_reset": was_reset,
        "found": found,
    })  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
