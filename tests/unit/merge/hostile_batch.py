"""A batch of fuzz cases as a process of its own, with a hard limit on its memory: ``python hostile_batch.py FIRST
COUNT``.

The last line is JSON: how often each outcome occurred, and what broke. It is also how one case is run again: ``python
hostile_batch.py 4711 1 -v``.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
from hostile_cases import Broken, run_case
from hostile_samples import seeds
from merge_samples import QUICK

HEADROOM = 1 << 30
"""Bytes of address space that a batch may take beyond what it has when it starts."""
KEPT = 400


def limit_memory() -> None:
    """Let any larger allocation fail, so that one that a header asks for is a MemoryError and not a dead machine."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, used + HEADROOM))


def run_batch(first: int, count: int, *, verbose: bool = False) -> dict[str, object]:
    """Run cases and return ``{"outcomes": …, "broken": […]}``."""
    outcomes: Counter[str] = Counter()
    broken: list[str] = []
    for number in range(first, first + count):
        sys.stderr.write(f"{number}\n")  # the last one is what to look at when the process itself is gone
        folder = Path(tempfile.mkdtemp(dir=QUICK))
        try:
            outcomes[run_case(number, folder)] += 1
        except Broken as error:
            outcomes["BROKEN"] += 1
            broken.append(str(error))
            if verbose:
                traceback.print_exception(error)
        finally:
            _remove(folder)
    return {"outcomes": dict(outcomes), "broken": broken[:KEPT], "broken_count": len(broken)}


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except RecursionError:  # some cases nest folders deeper than Python follows
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def main() -> int:
    """Run the batch that the command line names."""
    first, count = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    seeds()
    limit_memory()
    result = run_batch(first, count, verbose="-v" in sys.argv)
    sys.stdout.write(json.dumps(result) + "\n")
    return 1 if result["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
