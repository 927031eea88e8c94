"""Which of the libraries is imported first, where the usual order fails.

A release may mend another when it is imported, and then only those imports go through that come after it. Users import
in any order. So where an import fails the other orders are tried, each in a fresh process, because a failed import
leaves halves of modules behind. The cell goes on with the first that works, and says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.worker.observation import Observation
from harness.worker.request import Request

ORDERS = ("peft", "trl", "transformers")
"""What is imported first; the usual order comes first. The rest follows in the order of this list."""
USUAL = ORDERS[0]
MAIN = Path(__file__).with_name("__main__.py")

Attempt = Callable[[str, Request], str | None]


def attempt(first: str, request: Request) -> str | None:
    """Import in a fresh process; return None where that works, else the last line that it wrote."""
    command = [sys.executable, "-I", "-u", str(MAIN), "--imports", first, request.device, str(request.threads)]
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode == 0:
        return None
    lines = ended.stderr.strip().splitlines()
    return lines[-1] if lines else f"it ended with exit status {ended.returncode}"


def choose_another(observation: Observation, request: Request, attempt: Attempt = attempt) -> Request | None:
    """Return the request with an order of imports that works; None where none does, which is then recorded.

    The request's file is written anew, so that each process of the cell imports in that order.

    Args:
        observation: of the cell, whose import has failed.
        request: the cell's.
        attempt: tries an order.
    """
    entry = observation.data["stages"].get("import", {})
    failure = str(entry.get("reason"))
    if request.import_first != USUAL or entry.get("ended") != "raised":  # tried already, or it was the process
        return None
    others: list[str] = []
    for first in ORDERS[1:]:
        said = attempt(first, request)
        if said is None:
            told = {"import_first": first, "import_failure": failure}
            request.file.write_text(json.dumps({**json.loads(request.file.read_text()), **told}, indent=1))
            return replace(request, import_first=first, import_failure=failure)
        others.append(f"when {first} comes first: {said}")
    entry["reason"] = f"{failure}; in no other order either: {'; '.join(others)}"
    observation.save()
    return None
