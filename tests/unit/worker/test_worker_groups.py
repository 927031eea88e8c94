"""Groups of stages in processes that are started ahead: what runs where.

When one dies, what becomes of the rest is shown too.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import group_program
import pytest

from harness.contract.bands import Bands
from harness.worker.groups import StartedAhead
from harness.worker.observation import Observation
from harness.worker.request import Request
from harness.worker.run import run_steps

PROGRAM = Path(group_program.__file__)
BANDS = Bands(**{field.name: 0.0 for field in dataclasses.fields(Bands)})


def run(folder: Path, behaviour: dict[str, str]) -> tuple[dict[str, str], dict[str, int], list[int]]:
    """Run all groups; return results by stage, process by stage, and the processes that imported ahead."""
    cell = {
        "family": "qwen3_moe", "recipe": "lora", "geometry": "distinct", "variant": "published", "dtype": "float32",
        "device": "cpu", "seed": 0, "engine": "reference", "fault": None,
    }  # fmt: skip
    observation = Observation(folder / "observation.json")
    data = {
        "cell": cell, "work": str(folder), "observation": str(observation.path), "threads": 1,
        "bands": dataclasses.asdict(BANDS), "processes": "started",
    }  # fmt: skip
    (folder / "request.json").write_text(json.dumps(data))
    (folder / "behaviour.json").write_text(json.dumps(behaviour))
    request = Request(
        **{name: value for name, value in cell.items() if name != "fault"},  # type: ignore[arg-type]  # plain values
        fault=None, work=folder, observation=observation.path, threads=1, bands=BANDS, processes="started",
    )  # fmt: skip
    before = _children()
    way = StartedAhead(observation, request, count=len(group_program.GROUPS), main=PROGRAM)
    assert len(_children() - before) == 4, "all at once, when the cell begins"
    run_steps(way, observation, group_program.GROUPS)
    assert _children() == before, "nothing is left"
    lines = [json.loads(line) for line in (folder / "ran").read_text().splitlines()]
    imported = folder / "imported"
    return (
        {name: stage["ended"] for name, stage in observation.data["stages"].items()},
        dict(lines),
        [int(line) for line in imported.read_text().splitlines()] if imported.exists() else [],
    )


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def is_there(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


ALL = (
    "import", "build", "load", "attach", "train", "save", "generate", "forward-paths", "reload-adapter", "merge",
    "reload-merged", "generate-merged", "compare", "controls",
)  # fmt: skip


def test_each_group_has_a_process_and_each_but_the_first_has_imported_ahead(tmp_path: Path) -> None:
    results, where, imported = run(tmp_path, {})

    assert results == dict.fromkeys(ALL, "completed")
    assert {where[name] for name in ("import", "build", "load", "attach", "train", "save")} == {where["import"]}
    assert where["reload-merged"] == where["compare"] == where["controls"]
    groups = {where[name] for name in ("import", "reload-adapter", "merge", "compare")}
    assert len(groups) == 4
    assert set(imported) == groups - {where["import"]}


def test_a_crash_while_the_merge_is_loaded_does_not_stop_the_comparison_of_its_bytes(tmp_path: Path) -> None:
    results, where, imported = run(tmp_path, {"reload-merged": "kill"})

    rest = [name for name in ALL if name != "generate-merged"]
    assert results == {**dict.fromkeys(rest, "completed"), "reload-merged": "died"}
    assert where["compare"] == where["controls"] != where["reload-merged"]
    assert where["compare"] in imported, "the new process has imported too"


@pytest.mark.parametrize(("how", "result"), [("kill", "died"), ("leave", "died"), ("raise", "raised")])
def test_what_needs_a_stage_that_came_to_nothing_is_not_run(tmp_path: Path, how: str, result: str) -> None:
    results, _, _ = run(tmp_path, {"train": how})

    assert results == {**dict.fromkeys(("import", "build", "load", "attach"), "completed"), "train": result}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("how", "result"), [("starts-another", "completed"), ("forks-and-dies", "died")])
def test_what_a_group_has_started_ends_with_it(tmp_path: Path, how: str, result: str) -> None:
    """A data loader's worker, say: it neither outlives the group nor hides its end."""
    results, _, _ = run(tmp_path, {"reload-adapter": how})
    pid = int((tmp_path / "started").read_text())

    assert results == {**dict.fromkeys(ALL, "completed"), "reload-adapter": result}
    assert not is_there(pid)


def test_an_adapter_that_cannot_be_loaded_again_stops_nothing_else(tmp_path: Path) -> None:
    results, _, _ = run(tmp_path, {"reload-adapter": "raise"})

    assert results == {**dict.fromkeys(ALL, "completed"), "reload-adapter": "raised"}


def test_imports_that_fail_are_the_cell_s_only_stage(tmp_path: Path) -> None:
    results, _, _ = run(tmp_path, {"import": "raise"})

    assert results == {"import": "raised"}


def test_imports_that_end_the_process_are_a_crash(tmp_path: Path) -> None:
    results, _, _ = run(tmp_path, {"import": "kill"})

    assert results == {"import": "died"}


def test_imports_that_fail_in_a_later_process_are_an_error_of_the_stage_that_needs_it(tmp_path: Path) -> None:
    (tmp_path / "no-import").touch()
    results, where, _ = run(tmp_path, {})

    assert results == {
        **dict.fromkeys(ALL[: ALL.index("reload-adapter")], "completed"),
        "reload-adapter": "died",
        "merge": "died",
    }
    assert "merge" not in where
