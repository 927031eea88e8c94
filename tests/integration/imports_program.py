"""Run in a stack's environment: one cell, forked as by a warm worker, that writes down what each step imports.

Arguments: the project's root, a request file and where to write: a line of JSON for each step.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])

from harness.worker import run
from harness.worker.libraries import import_libraries, preload
from harness.worker.request import read_request

if __name__ == "__main__":
    request = read_request(Path(sys.argv[2]))
    os.chdir(request.work)
    import_libraries(threads=1, device="cpu")
    preload()
    original = run.run_step

    def watched(step: Any, *arguments: Any) -> None:
        """Run the step in its child, and say what was not there before it."""
        before = set(sys.modules)
        try:
            original(step, *arguments)
        finally:
            with Path(sys.argv[3]).open("a") as file:
                file.write(json.dumps([step.stages[0], sorted(set(sys.modules) - before)]) + "\n")

    run.run_step = watched
    run.run_cell(request)
