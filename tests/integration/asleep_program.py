"""Run in a stack's environment: one cell for each case, with one of its checks asleep, which passes whatever it sees.

Arguments: the project's root. A case is ``{"request": FILE, "stage": …, "check": …}``; what is said is the observation.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])

from harness.worker.libraries import import_libraries, preload
from harness.worker.observation import Judgement, Observation
from harness.worker.request import read_request
from harness.worker.run import run_cell


def put_to_sleep(asleep: tuple[str, str]) -> None:
    """Let a check pass whatever it is given, its control included, wherever it is made."""
    judge, check = Observation.judge, Observation.check

    def sleepy_judge(self: Observation, name: str, stage: Any, judgement: Judgement, *, control: Judgement) -> None:
        if (stage, name) == asleep:
            judgement, control = (dataclasses.replace(it, passed=True) for it in (judgement, control))
        judge(self, name, stage, judgement, control=control)

    def sleepy_check(self: Observation, name: str, stage: Any, *args: Any, passed: bool, **more: Any) -> None:
        check(self, name, stage, *args, passed=passed or (stage, name) == asleep, **more)

    Observation.judge, Observation.check = sleepy_judge, sleepy_check  # type: ignore[method-assign,assignment]


def main() -> None:
    """Fork for each case: the imports are made once, and what is put to sleep stays in its own process."""
    said = os.dup(1)
    os.dup2(2, 1)
    cases = [json.loads(line) for line in sys.stdin]
    import_libraries(threads=2, device="cpu")
    preload()
    for case in cases:
        request = read_request(Path(case["request"]))
        child = os.fork()
        if not child:
            os.chdir(request.work)
            put_to_sleep((case["stage"], case["check"]))
            run_cell(request)
            os._exit(0)
        os.waitpid(child, 0)
        os.write(said, json.dumps(json.loads(request.observation.read_text())).encode() + b"\n")


if __name__ == "__main__":
    main()
