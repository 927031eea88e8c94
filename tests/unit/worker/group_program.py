"""Started for each group, as the worker's own entry point is: the real ``serve_group``.

Its steps do as they are told. What a stage does stands in ``behaviour.json`` beside the request: ``kill``, ``raise``,
``leave``, ``starts-another`` (which is not waited for), ``forks-and-dies`` (the child holds the pipe). Nothing stands
there for one that passes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from harness.worker import groups
from harness.worker.checkpoints.family import Checkpoint
from harness.worker.observation import Observation
from harness.worker.request import Request
from harness.worker.steps import Step

STEPS = (
    (("build",), ("load", "attach", "train", "save", "generate", "forward-paths")),
    (("reload-adapter",),),
    (("merge",),),
    (("reload-merged", "generate-merged"), ("compare",), ("controls",)),
)
"""Stages by process and step, as this test has them, not from the worker's table."""


def _note(name: str, value: object) -> None:
    with Path(name).open("a") as file:
        file.write(f"{json.dumps(value)}\n")


def _run(names: tuple[str, ...]) -> Any:
    def run(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
        del request, checkpoint
        for name in names:
            with observation.stage(name):
                _note("ran", [name, os.getpid()])
                match json.loads(Path("behaviour.json").read_text()).get(name):
                    case "kill":
                        os.kill(os.getpid(), signal.SIGKILL)
                    case "leave":
                        os._exit(0)
                    case "starts-another":
                        _note("started", subprocess.Popen(["sleep", "600"]).pid)
                    case "forks-and-dies":
                        if (pid := os.fork()) == 0:
                            signal.pause()
                        _note("started", pid)
                        os.kill(os.getpid(), signal.SIGSEGV)
                    case "raise":
                        raise RuntimeError(name)

    return run


GROUPS = tuple(tuple(Step(stages=stages, run=_run(stages)) for stages in group) for group in STEPS)


def _import(*, threads: int, device: str, first: str) -> None:
    del threads, device, first
    _note("imported", os.getpid())
    if Path("no-import").exists():
        raise ImportError("no such library")


if __name__ == "__main__":
    groups.GROUPS = GROUPS
    groups.IMPORT = Step(stages=("import",), run=_run(("import",)))
    groups.import_libraries = _import
    groups.serve_group(int(sys.argv[2]), Path(sys.argv[3]))
