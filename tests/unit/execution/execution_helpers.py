# ruff: noqa: D102  # the methods of an observer are described in the protocol
"""A worker of a few lines whose behaviour is its cell's recipe, and what is needed to run it for real."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contract_samples import complete_observation

import harness
from harness.contract.cell_fields import Device
from harness.contract.stages import WORKER_STAGES, StageName
from harness.execution.observer import RunReport
from harness.execution.result_cache import ResultCache
from harness.execution.services import CellSettings, Services
from harness.execution.supervise import Limits
from harness.matrix.cell import Cell, Stack
from harness.result import CellResult

WORKER = (
    f"STAGES = {WORKER_STAGES!r}\nCOMPLETE = {complete_observation()!r}\n"
    '''
import json, os, signal, subprocess, sys, time
from pathlib import Path

seen = {"stages": {}, "running": None, "done": False}

def write():
    path = Path(request["observation"])
    path.with_suffix(".new").write_text(json.dumps(seen))
    path.with_suffix(".new").replace(path)

def reach(stage):
    """Pass every stage before `stage`, then be in it."""
    for name in STAGES[: STAGES.index(stage)]:
        seen["stages"][name] = COMPLETE["stages"][name]
    seen["checks"] = [check for check in COMPLETE["checks"] if check["stage"] in seen["stages"]]
    known = ("base_sha256", "device", "facts", "adapter", "merge", "metrics", "training")
    seen.update({name: COMPLETE[name] for name in known})
    seen["running"] = stage
    write()

def finish():
    seen.update(COMPLETE)
    write()

def run(path):
    global request
    request = json.loads(Path(path).read_text())
    behaviour = request["cell"]["recipe"]
    print("cwd", os.getcwd())
    if behaviour == "passes":
        finish()
    elif behaviour == "slow":
        reach("train")
        time.sleep(0.4)
        finish()
    elif behaviour == "hangs":
        reach("train")
        time.sleep(600)
    elif behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reach("merge")
        time.sleep(600)
    elif behaviour == "killed":
        reach("load")
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == "segfaults":
        reach("merge")
        os.kill(os.getpid(), signal.SIGSEGV)
    elif behaviour == "greedy":
        reach("load")
        block = bytearray(256 * 1024 * 1024)
        block[::4096] = b"x" * len(block[::4096])  # touched, so that it is resident
        time.sleep(600)
    elif behaviour == "greedy-children":
        reach("train")
        code = "b = bytearray(96 * 1024 * 1024); b[::4096] = b'x' * len(b[::4096]); import time; time.sleep(600)"
        children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
        time.sleep(600)
    elif behaviour == "garbage":
        Path(request["observation"]).write_text("{\\"stages\\": {\\"build\\"")
        print("last words")
    elif behaviour == "raises":
        reach("attach")
        raise RuntimeError("no such thing in " + os.getcwd())
    elif behaviour == "escapes":
        # A grandchild in the group, and a daemon: double fork, session of its own, adopted by init.
        pids = Path(request["work"]).parent / "pids"
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        daemon = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\\\n')
        time.sleep(600)
    os._exit(0)
os.wait()
"""
        subprocess.run([sys.executable, "-c", daemon], check=True)
        with pids.open("a") as file:
            file.write(f"{child.pid}\\n")
        while len(pids.read_text().split()) < 2:
            time.sleep(0.01)
        finish()
    else:
        raise SystemExit(f"unknown behaviour {behaviour}")

def prepare():
    """What a real worker imports."""

if sys.argv[1] == "--warm":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from harness.worker.warm import serve
    serve(prepare, run)
else:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import atexit
    from harness.worker.orphans import adopt_orphans, end_children
    adopt_orphans()
    atexit.register(end_children)
    run(sys.argv[1])
'''
)


SERVING = ("warm.py", "newborn.py", "orphans.py", "channel.py")
"""The real worker's own files by which it serves cells. What is fake here is what it imports and runs."""


def stack(*, peft: str = "0.19.1", pins: Mapping[str, str] | None = None) -> Stack:
    return Stack(transformers="5.5.0", peft=peft, trl="0.25.1", pins=dict(pins or {"torch": "2.13.0"}))


def cell(recipe: str = "passes", *, seed: int = 0, peft: str = "0.19.1", **more: object) -> Cell:
    return Cell.model_validate(
        {"family": "qwen3_moe", "recipe": recipe, "stack": stack(peft=peft), "seed": seed, **more}
    )


def fake_package(folder: Path, worker: str = WORKER, *, serving: Sequence[str] = SERVING) -> Path:
    """A folder that looks like the package ``harness`` to the bundle."""
    package = folder / "package"
    (package / "worker").mkdir(parents=True)
    (package / "__init__.py").write_text('"""Fake."""\n')
    (package / "worker" / "__init__.py").write_text("")
    (package / "worker" / "__main__.py").write_text(worker)
    for name in serving:
        shutil.copy(Path(harness.__file__).parent / "worker" / name, package / "worker")
    return package


@dataclass(frozen=True, kw_only=True)
class FakeEnvironment:
    """The interpreter that runs the tests, dressed up as the environment of a stack."""

    prefix: Path
    python: Path = Path(sys.executable)
    lock_sha256: str | None = "a" * 64
    identity: str | None = "b" * 64
    versions: Mapping[str, str] = field(
        default_factory=lambda: {"transformers": "5.5.0", "peft": "0.19.1", "trl": "0.25.1", "torch": "2.13.0"}
    )
    python_version: str = "3.11.7"
    seconds_resolve: float | None = 0.5
    seconds_install: float | None = 1.5
    note: str | None = None


def fake_environment(folder: Path, wanted: Stack) -> FakeEnvironment:
    """The environment that holds just what a stack names."""
    versions = {"transformers": wanted.transformers, "peft": wanted.peft, "trl": wanted.trl, "torch": "2.13.0"}
    return FakeEnvironment(prefix=folder / "env", versions=versions, identity=f"holds peft {wanted.peft}")


def child_environment(*, scratch: Path, threads: int, device: Device, prefix: Path) -> dict[str, str]:
    del device, prefix
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": str(threads),
        "LC_ALL": "C.UTF-8",  # without it, an interpreter that starts in the C locale sets a variable of its own
    }


def services(
    folder: Path,
    *,
    prepare: Callable[[Stack], FakeEnvironment] | None = None,
    limits: Limits | None = None,
    bands: Mapping[str, object] | None = None,
    results: ResultCache | None = None,
    identities: Mapping[str, str] | None = None,
) -> Services:
    """Everything below ``folder``; the package is made there unless it is there already.

    Results are kept in ``results``, and whatever is kept there is reused.
    """
    package = folder / "package"
    settings = CellSettings(
        limits=limits or Limits(seconds=60, grace=0.3, interval=0.05),
        bands=bands or {"kl_max": 1e-9},
        threads=1,
    )
    return Services(
        prepare=prepare or (lambda wanted: fake_environment(folder, wanted)),
        child_environment=child_environment,
        settings=lambda _cell: settings,
        cache=folder / "cache",
        out=folder / "out",
        scratch=folder / "scratch",
        package=package if package.exists() else fake_package(folder),
        results=results,
        reuse=lambda _cell: True,
        identities=identities or {},
    )


class Recorder:
    """An observer that keeps what it was told, and in which thread."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []
        self.threads: set[int] = set()
        self.running = 0
        self.most_running = 0
        self.report: RunReport | None = None

    def _note(self, *event: str) -> None:
        self.events.append(event)
        self.threads.add(threading.get_ident())

    def planned(self, cells: Sequence[Cell]) -> None:
        self._note("planned", str(len(cells)))

    def environment_started(self, stack: Stack) -> None:
        self._note("environment_started", stack.peft)

    def environment_ready(self, stack: Stack, seconds: float) -> None:
        del seconds
        self._note("environment_ready", stack.peft)

    def environment_failed(self, stack: Stack, reason: str) -> None:
        self._note("environment_failed", stack.peft, reason)

    def cell_started(self, cell: Cell) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self._note("cell_started", cell.id)

    def cell_stage(self, cell: Cell, stage: StageName) -> None:
        self._note("cell_stage", cell.id, stage)

    def cell_finished(self, result: CellResult, *, reused: bool) -> None:
        self.running -= not reused
        self._note("cell_finished", result.cell_id, "reused" if reused else "made")

    def note(self, text: str) -> None:
        self._note("note", text)

    def run_ended(self, report: RunReport) -> None:
        self.report = report
        self._note("run_ended")

    def closed(self) -> None:
        self._note("closed")


def alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
