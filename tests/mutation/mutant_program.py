"""Run in a stack's environment: one cell for each case, with one function's code replaced, or with its lines noted.

Arguments: the project's root. A case is ``{"request": FILE, "seconds": …}`` and ``"module", "function", "source"``, or
``"trace": [FILES]``, or nothing else: a cell as it is. What is said of a trace is the lines that ran, as a list of
``[before the merge, file → lines]``. Of the others it is how the cell ended (``done``, ``died``, ``timeout``, or
``not planted`` with a reason) and the observation, where there is one.

A cell ends with the step in which something is noticed. One whose change only the merge and what follows can run
(``"merged": true``) begins there, from what the unchanged cell had left until then (``"kept": DIRECTORY``, made the
first time).
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

sys.path.insert(0, sys.argv[1])

from harness.worker import run as worker_run
from harness.worker.cell import GROUPS
from harness.worker.checkpoints.family import build
from harness.worker.checkpoints.geometry import geometry
from harness.worker.libraries import import_libraries, preload
from harness.worker.observation import Observation
from harness.worker.request import Request, read_request
from harness.worker.run import Forked, run_cell, run_steps
from harness.worker.steps import Step

_TICK = 0.02
_MERGE = next(number for number, steps in enumerate(GROUPS) if steps[0].stages[0] == "merge")
NOT_PLANTED = "not-planted"
"""The file, in the work directory, that says why a mutant could not be planted."""


class NotPlantedError(Exception):
    """A function cannot be given other code."""


def replace_code(module: str, function: str, source: str) -> None:
    """Give a function the code that it has in another source of its module.

    Raises:
        LookupError: there is no such function, here or in that source.
        ValueError: the code wants other variables of its surroundings.
    """
    owner: Any = importlib.import_module(module)
    *path, name = function.split(".")
    for part in path:
        owner = getattr(owner, part)
    target: Any = inspect.getattr_static(owner, name)
    for door in ("__func__", "fget", "func"):
        target = getattr(target, door) if inspect.getattr_static(target, door, None) else target
    target = inspect.unwrap(target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        changed = compile(source, target.__code__.co_filename, "exec")
    if target.__code__.co_qualname != function:
        raise LookupError(f"{module}.{function} is another function: {target.__code__.co_qualname}")
    target.__code__ = _find(changed, function)


def _find(code: CodeType, function: str) -> CodeType:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_qualname == function:
                return constant
            if function.startswith(f"{constant.co_qualname}."):
                return _find(constant, function)
    raise LookupError(f"the changed source has no {function}")


def trace(files: list[str], into: Path) -> None:
    """Note which lines of some files this process and those forked from it run, from now on."""
    wanted, seen = set(files), defaultdict[str, set[int]](set)

    def local(frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            seen[frame.f_code.co_filename].add(frame.f_lineno)
        return local

    def enter(frame: FrameType, _event: str, _argument: object) -> Any:
        return local if frame.f_code.co_filename in wanted else None

    run_step = worker_run.run_step

    def noted(step: Step, *args: Any) -> None:
        sys.settrace(enter)
        threading.settrace(enter)
        try:
            run_step(step, *args)
        finally:
            sys.settrace(None)
            lines = {name: sorted(numbers) for name, numbers in seen.items()}
            early = any(step in steps for steps in GROUPS[:_MERGE])
            (into / f"lines-{os.getpid()}.json").write_text(json.dumps([early, lines]))

    worker_run.run_step = noted


def stop_when_noticed() -> None:
    """Let no step begin after one in which a check failed, a control got through or a stage did not come to its end."""
    can_run = Step.can_run

    def unless_noticed(step: Step, observation: Observation) -> bool:
        failed = any(not check["passed"] for check in observation.data["checks"])
        ended = {stage["ended"] for stage in observation.data["stages"].values()}
        return not failed and ended <= {"completed"} and can_run(step, observation)

    Step.can_run = unless_noticed  # type: ignore[method-assign]


def run_merged(case: dict[str, Any], request: Request) -> None:
    """Run the merge and what follows, on what an unchanged cell has left."""
    checkpoint = build(request.family, geometry(request.geometry), request.variant)
    kept = Path(case["kept"])
    shutil.rmtree(request.work)
    shutil.copytree(kept, request.work)
    os.chdir(request.work)
    plant(case)
    observation = Observation.load(request.observation)
    observation.data["done"] = False
    run_steps(Forked(observation, request, checkpoint), observation, GROUPS[_MERGE:])
    observation.data["done"] = True
    observation.save()


def keep(request: Request, kept: Path) -> None:
    """Run a cell until its merge, unchanged, and keep what it leaves."""
    groups = worker_run.GROUPS
    worker_run.GROUPS = GROUPS[:_MERGE]  # type: ignore[misc]
    run_cell(request)
    worker_run.GROUPS = groups  # type: ignore[misc]
    shutil.copytree(request.work, kept)


def plant(case: dict[str, Any]) -> None:
    """Change a function, where a case says so.

    Raises:
        NotPlantedError: it cannot be.
    """
    if "module" in case:
        try:
            replace_code(case["module"], case["function"], case["source"])
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            raise NotPlantedError(repr(error)) from error


def run(case: dict[str, Any], request: Request) -> None:
    """Be the cell."""
    os.setsid()
    os.chdir(request.work)
    # Beside the directory: what lies in it is looked at.
    log = os.open(request.work.with_suffix(".log"), os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        if "trace" in case:
            trace(case["trace"], request.work)
            run_cell(request)
            return
        stop_when_noticed()
        if not case.get("merged"):
            plant(case)
            run_cell(request)
            return
        if not Path(case["kept"]).exists():
            keep(request, Path(case["kept"]))
        run_merged(case, request)
    except NotPlantedError as error:
        request.work.mkdir(exist_ok=True)
        (request.work / NOT_PLANTED).write_text(str(error))


def wait(child: int, seconds: float) -> bool:
    """Wait for a cell, and kill it with all that it started when its time is over; say whether it ended by itself."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(_TICK)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def ended(request: Request, *, in_time: bool) -> dict[str, Any]:
    """Return what became of a mutant's cell."""
    if (request.work / NOT_PLANTED).exists():
        return {"ended": "not planted", "reason": (request.work / NOT_PLANTED).read_text()}
    seen = json.loads(request.observation.read_text()) if request.observation.exists() else None
    return {"ended": "timeout" if not in_time else "done" if seen and seen.get("done") else "died", "observation": seen}


def main() -> None:
    """Fork for each case: the imports are made once, and what is changed stays in its own process."""
    said = os.dup(1)
    os.dup2(2, 1)
    import_libraries(threads=1, device="cpu")
    preload()
    for line in sys.stdin:
        case = json.loads(line)
        request = read_request(Path(case["request"]))
        child = os.fork()
        if not child:
            try:
                run(case, request)
            finally:
                os._exit(0)
        in_time = wait(child, case["seconds"])
        if "trace" in case:
            answer: Any = [json.loads(path.read_text()) for path in request.work.glob("lines-*.json")]
        else:
            answer = ended(request, in_time=in_time)
        os.write(said, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
