"""The folder is the catalogue, an engine's claims are only claims, and what it took is measured."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.engines.engine import Claims, Engine, Job, Merged, engine, run_in_this_process
from harness.faults import fault_names
from harness.matrix.catalogue import read_catalogue
from harness.worker.request import Bands, Request
from harness.worker.stages import merge
from harness.worker.stages.merge import EngineExitError, merge_with_engine

ROOT = Path(__file__).resolve().parents[3]


def _files_that_define(name: str, folder: str) -> set[str]:
    """Names on the command line of the files that say so in their text, which nobody imports to find out."""
    files = (ROOT / "harness").glob(f"{folder}/*.py")
    return {
        path.stem.replace("_", "-") for path in files if re.search(rf"^{name}\b", path.read_text("utf-8"), re.MULTILINE)
    }


def test_every_file_of_the_folders_is_found_and_nothing_else() -> None:
    catalogue = read_catalogue()

    assert set(catalogue.engines) == _files_that_define("ENGINE", "engines") >= {"peft", "reference"}
    assert set(catalogue.faults) == _files_that_define("FAULT", "faults/*") >= {"b-packing", "base-copied"}
    assert catalogue.faults == fault_names()


@pytest.mark.parametrize(("name", "keeps_bytes"), [("reference", True), ("peft", False)])
def test_an_engine_is_found_by_its_name(name: str, keeps_bytes: bool) -> None:
    assert engine(name).keeps_bytes is keeps_bytes


def test_naming_engines_and_faults_imports_no_library() -> None:
    program = (
        "import sys; from harness.faults import *; from harness.engines.engine import engine;"
        f"[engine(n) for n in {read_catalogue().engines}]; [fault(n) for n in fault_names()];"
        "print(sorted({m.split('.')[0] for m in sys.modules} "
        "& {'torch', 'peft', 'transformers', 'safetensors', 'numpy'}))"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert shown.stdout.strip() == "[]"


def test_what_an_engine_took_is_measured() -> None:
    def work() -> Claims:
        block = bytearray(64 * 2**20)
        block[::4096] = b"x" * len(block[::4096])  # touched, so that it is resident
        return Claims(applied=3)

    merged = run_in_this_process(work)

    assert merged.claims == Claims(attempted=None, applied=3, fallback=None)
    assert merged.exit == 0
    assert merged.seconds > 0
    assert 64 < merged.peak_memory_mb < 64_000, "MiB, not KiB and not bytes"


def _request(work: Path) -> Request:
    bands = Bands(
        kl_max=1.0, logprob_max=1.0, samples_min=1.0, signal_min=0.1, exact_min=0.5, ulp_max=1.0,
        adapter_reload_kl_max=1.0, near_tie_epsilon=0.0, clear_min=0.5, definition_max=1.0, paths_max=1.0,
    )  # fmt: skip
    return Request(
        family="qwen3_moe", recipe="lora", geometry="distinct", variant="published", dtype="bf16", device="cpu", seed=0,
        engine="sample", fault=None, work=work, observation=work / "observation.json", threads=2, bands=bands,
    )  # fmt: skip


class _Sample:
    """An engine that writes down its job, does to its inputs what it is told and ends as it is told."""

    keeps_bytes = False

    def __init__(self, exit_status: int, edit: Callable[[Job], object] = lambda _job: None) -> None:
        self.exit_status = exit_status
        self.edit = edit
        self.jobs: list[Job] = []
        self.read: list[bytes] = []

    def merge(self, job: Job) -> Merged:
        self.jobs.append(job)
        self.read = [path.read_bytes() for path in (job.base / "config.json", job.adapter / "adapter_config.json")]
        self.edit(job)
        return Merged(claims=Claims(applied=7, fallback=2), exit=self.exit_status, seconds=1.5, peak_memory_mb=640.0)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A cell's base and adapter, a file each."""
    for folder, name in (("base", "config.json"), ("adapter", "adapter_config.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(folder)
    return tmp_path


def test_the_merge_stage_tells_the_engine_everything_and_keeps_what_it_says(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = _Sample(0)
    found: Engine = sample
    monkeypatch.setattr(merge, "engine", lambda _name: found)
    said = merge_with_engine(_request(work), out=work / "merged")

    given = work / "merged-given"
    assert sample.jobs == [
        Job(
            base=given / "base", adapter=given / "adapter", out=work / "merged", dtype="bf16", device="cpu", threads=2,
        )
    ]  # fmt: skip
    assert sample.read == [b"base", b"adapter"]
    assert not given.exists()
    assert said == {
        "edited_inputs": [],
        "engine_applied": 7, "engine_attempted": None, "fallback": 2, "engine_seconds": 1.5,
        "engine_peak_memory_mb": 640.0,
    }  # fmt: skip


def test_adapters_of_other_names_come_after_the_one_without(work: Path) -> None:
    job = Job(base=work / "base", adapter=work / "adapter", out=work / "merged")

    assert job.adapters == (work / "adapter",)
    for name in ("second", "frozen"):
        (work / "adapter" / name).mkdir()
        (work / "adapter" / name / "adapter_config.json").write_text("{}")
    assert job.adapters == tuple(work / path for path in ("adapter", "adapter/frozen", "adapter/second"))


EDITS: dict[str, tuple[Callable[[Job], object], list[str]]] = {
    "a weight": (lambda job: (job.base / "config.json").write_text("x"), ["base/config.json"]),
    "the adapter": (lambda job: (job.adapter / "adapter_config.json").write_text("x"), ["adapter/adapter_config.json"]),
    "a new file": (lambda job: (job.adapter / "cache.bin").write_text("x"), ["adapter/cache.bin"]),
    "a folder": (lambda job: (job.base / ".cache").mkdir(), ["base/.cache"]),
    "a file that is gone": (lambda job: (job.base / "config.json").unlink(), ["base/config.json"]),
    "all that is gone": (
        lambda job: shutil.rmtree(job.base.parent),
        ["adapter", "adapter/adapter_config.json", "base", "base/config.json"],
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_engine_that_edits_its_inputs_is_told_by_name_and_reaches_no_truth(
    work: Path, monkeypatch: pytest.MonkeyPatch, edit: str
) -> None:
    change, names = EDITS[edit]
    monkeypatch.setattr(merge, "engine", lambda _name: _Sample(0, change))
    said = merge_with_engine(_request(work), out=work / "merged")

    assert said["edited_inputs"] == names
    assert {path.relative_to(work).as_posix(): path.read_text() for path in work.rglob("*.json")} == {
        "base/config.json": "base", "adapter/adapter_config.json": "adapter",
    }  # fmt: skip


OUTSIDE: dict[str, tuple[str, list[str]]] = {
    "the cell's own adapter": ("adapter/adapter_config.json", ["adapter/adapter_config.json"]),
    "the deltas that its merge is judged by": ("deltas.safetensors", ["deltas.safetensors"]),
    "what it would be compared with if that were there": ("reference.safetensors", ["reference.safetensors"]),
    "a temporary file": ("tmp/file", []),
    "its own directory": ("merged/config.json", []),
}


@pytest.mark.parametrize("place", OUTSIDE)
def test_what_an_engine_writes_outside_its_directory_is_told_by_name(
    work: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    name, told = OUTSIDE[place]
    (work / "deltas.safetensors").write_bytes(b"deltas")
    (work / "tmp").mkdir()

    def change(job: Job) -> None:
        path = job.out.parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")

    monkeypatch.setattr(merge, "engine", lambda _name: _Sample(0, change))

    assert merge_with_engine(_request(work), out=work / "merged")["edited_inputs"] == told


def test_an_engine_whose_process_fails_is_an_error_of_the_merge_stage(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "engine", lambda _name: _Sample(3))

    with pytest.raises(EngineExitError, match="engine sample ended with exit code 3"):
        merge_with_engine(_request(work), out=work / "merged")


def test_an_unknown_engine_is_not_guessed() -> None:
    with pytest.raises(ModuleNotFoundError):
        engine("unheard-of")
    with pytest.raises(AttributeError):
        engine("engine")  # the Protocol's own file defines none
