"""A library whose import leaves what cannot be forked: the worker takes the other way, and says so.

The libraries are stubs, the worker is real.
"""

from __future__ import annotations

import dataclasses
import json
import venv
from pathlib import Path

import pytest
from execution_helpers import FakeEnvironment, Recorder, cell, services

from harness.contract.bands import Bands
from harness.execution.runner import ProcessOrigin
from harness.execution.scheduler import run_cells
from harness.result import CellResult

TORCH = """
import json, os, sys, threading, time
if {threads}:
    threading.Thread(target=time.sleep, args=(600,), daemon=True, name="left").start()
class cuda:
    @staticmethod
    def is_initialized():
        return {cuda_started}
class backends:
    class cudnn:
        allow_tf32 = True
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {{}})
class Ones:
    def __init__(self, *shape):
        pass
    def __matmul__(self, other):
        if {hangs}:
            os._exit(1)  # a child that comes to nothing, as one that hangs does a minute later
        return self
    def exp(self):
        return self
ones = Ones
class default_generator:
    seed = staticmethod(lambda: 0)
def set_num_threads(count):
    with open({imports!r}, "a") as file:
        file.write(json.dumps([os.getpid(), os.getppid(), sys.argv[1]]) + "\\n")
"""
LOGGING = """
class utils:
    class logging:
        disable_progress_bar = set_verbosity_error = staticmethod(lambda: None)
AutoModelForCausalLM = None
"""
STUBS = {
    "datasets": "", "peft": "", "safetensors/__init__": "", "safetensors/torch": "", "transformers": LOGGING,
    "trl": "SFTConfig = SFTTrainer = None",
}  # fmt: skip


def environment(folder: Path, **imports: bool) -> FakeEnvironment:
    """An environment in which the libraries are stubs; each import of them is noted in ``imports``."""
    venv.create(folder / "env", symlinks=True, with_pip=False)
    (site,) = (folder / "env" / "lib").glob("python3.*/site-packages")
    flags = {name: name in imports and imports[name] for name in ("cuda_started", "threads", "hangs")}
    torch = TORCH.format(**flags, imports=str(folder / "imports"))
    for name, source in {**STUBS, "torch": torch}.items():
        path = site / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    return FakeEnvironment(prefix=folder / "env", python=folder / "env" / "bin" / "python")


def run(
    folder: Path, *, processes: ProcessOrigin, **flags: bool
) -> tuple[CellResult, list[str], list[tuple[int, int, str]], str]:
    """Run a cell; return its result, what was noted, (process, parent, first argument) of each import, and the log."""
    made = environment(folder, **flags)
    wanted = services(folder, prepare=lambda _stack: made)
    wanted = type(wanted)(**{**vars(wanted), "package": None, "settings": wanted.settings})
    bands = dict.fromkeys((field.name for field in dataclasses.fields(Bands)), 0.0)
    settings = wanted.settings(cell())
    settings = type(settings)(limits=settings.limits, bands=bands, threads=1)
    wanted = type(wanted)(**{**vars(wanted), "settings": lambda _cell: settings})
    recorder = Recorder()
    result = run_cells([cell("lora")], wanted, recorder, processes=processes).results[0]
    notes = [event[1] for event in recorder.events if event[0] == "note"]
    imports = [tuple(json.loads(line)) for line in (folder / "imports").read_text().splitlines()]
    log = (folder / "out" / str(result.log)).read_text()
    return result, notes, imports, log


def test_a_warm_worker_that_has_started_cuda_forks_nothing(tmp_path: Path) -> None:
    """Each cell then starts processes for its stages at once, and the one that starts them imports nothing."""
    result, notes, imports, _ = run(tmp_path, cuda_started=True, processes="warm")
    worker, *groups = imports

    assert len(notes) == 1
    assert notes[0].endswith("the imports have started CUDA, which no forked child could use")
    assert worker[2] == "--warm"
    assert {argument for _, _, argument in groups} == {"--group"}
    assert len({parent for _, parent, _ in groups}) == 1
    assert result.stages["import"].result == "pass"
    assert result.stages["build"].result == "error", "the stubs have no numpy, and this is how far they carry"


def test_a_process_of_its_own_that_has_started_cuda_begins_again_without_it(tmp_path: Path) -> None:
    result, notes, imports, log = run(tmp_path, cuda_started=True, processes="fresh")
    first, *groups = imports

    assert notes == []
    assert first[2].endswith("request.json")
    assert {argument for _, _, argument in groups} == {"--group"}
    assert {parent for _, parent, _ in groups} == {first[0]}, "the same process, which has not imported since"
    assert "the imports have started CUDA, which no forked child could use: processes are started for stages" in log
    assert result.stages["import"].result == "pass"


@pytest.mark.parametrize("processes", ["warm", "fresh"])
@pytest.mark.parametrize(
    ("flag", "said"), [("threads", "the imports left Python threads running: left"), ("hangs", "when it computes")]
)
def test_where_forked_children_would_hang_processes_are_started(
    tmp_path: Path, processes: ProcessOrigin, flag: str, said: str
) -> None:
    result, notes, imports, log = run(tmp_path, processes=processes, **{flag: True})
    _, *groups = imports

    assert said in (notes[0] if processes == "warm" else log)
    assert {argument for _, _, argument in groups} == {"--group"}
    assert result.stages["import"].result == "pass"


@pytest.mark.parametrize("processes", ["warm", "fresh"])
def test_where_imports_start_nothing_stages_are_forked(tmp_path: Path, processes: ProcessOrigin) -> None:
    result, notes, imports, _ = run(tmp_path, cuda_started=False, processes=processes)

    assert notes == []
    assert result.stages["import"].result == "pass"
    # The import stage of a forked cell asks for the threads again, in the cell's own process.
    assert [argument for _, _, argument in imports if argument == "--group"] == []
