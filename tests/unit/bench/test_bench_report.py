"""The report: goals with what was measured, whatever is missing or failed said so, and README's part of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.bench.case import case_names, load_case, usual_cases
from harness.bench.cases.copy import decoded
from harness.bench.machine import disk_words
from harness.bench.readme import main, shown
from harness.bench.report import END, START, overview, render
from harness.bench.run import choose
from harness.bench.settings import Settings
from harness.bench.store import IN_PROGRESS, Store
from harness.errors import UnknownNameError

MACHINE = {
    "cores": 2,
    "processor": "a processor",
    "memory_gib": 24,
    "disk": "virtual disk",
    "file_system": "ext4",
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
}
SETTINGS = Settings(sizes=(2 * 10**9,), pairs=2)


def runs(*times: float, peak: int = 100 << 20) -> list[dict[str, Any]]:
    return [
        {
            "seconds": time,
            "import_seconds": 3.0,
            "process_seconds": time + 3,
            "rss_above": peak,
            "rss_before": 1 << 20,
            "peak_was_reset": True,
        }
        for time in times
    ]


def results(steps: dict[str, Any], **changes: Any) -> dict[str, Any]:
    heading = {
        "settings": SETTINGS.to_json(),
        "cases": list(case_names()),
        "machine": MACHINE,
        "command": "nox -s bench",
    }
    return {**heading, "resumed": [], "steps": steps, **changes}


def row(text: str, start: str) -> list[str]:
    """Return the cells of the table row that begins with some words."""
    line = [line for line in text.splitlines() if line.startswith(f"| {start}")][-1]
    return [cell.strip() for cell in line.strip("|").split("|")]


SERIES = "copy/2000000000/experts/cold"


def test_a_goal_that_is_reached() -> None:
    text = render(results({SERIES: {"copy": runs(2.0, 2.0), "reference": runs(2.1, 2.1)}}))

    what = "merge / copy, 2 GB, every expert tensor changes, cold"
    assert row(text, what) == [what, "≤ 1.1, interval ≤ 1.3", "1.05 [1.05, 1.05]", "reached"]
    assert row(text, "peak memory above imports, 2 GB")[2:] == ["100 MiB", "reached"]


def test_a_goal_that_is_not_reached_says_so() -> None:
    text = render(results({SERIES: {"copy": runs(2.0, 2.0), "reference": runs(5.0, 5.0, peak=2 << 30)}}))

    assert row(text, "merge / copy, 2 GB, every expert tensor changes, cold")[2:] == [
        "2.50 [2.50, 2.50]",
        "**not reached**",
    ]
    assert row(text, "peak memory above imports, 2 GB")[3] == "**not reached**"


def test_a_contender_that_failed_is_named_with_its_reason() -> None:
    series = {"reference": runs(2.0), "peft": runs(20.0), "unsloth_zoo": {"failed": "ImportError: no GPU"}}
    versions = {"reference": {}, "peft": {"peft": "0.19.1"}, "unsloth_zoo": {}}
    text = render(results({"others/experts": {"series": series, "versions": versions}}))

    assert row(text, "PEFT / ours, imports aside")[2:] == ["10.00 [10.00, 10.00]", "reached"]
    assert row(text, "unsloth-zoo / ours, imports aside")[2:] == ["not measured", "**not reached**"]
    assert "- unsloth-zoo failed: `ImportError: no GPU`" in text
    assert row(text, "PEFT (peft 0.19.1)")[4] == "10.00 [10.00, 10.00]"


def test_exactness_is_shown_as_counted() -> None:
    judged = {"reference": {"changed": 10**6, "exact": 999_990, "beyond": 0, "largest": 0.5}}
    failed = {"reference_float64": "MemoryError: not enough of it"}
    text = render(results({"exactness": {"judged": judged, "failed": failed, "versions": {"reference": {}}}}))

    assert row(text, "`harness merge`, float32")[1:] == ["1,000,000", "99.999 %", "0 %", "0.5"]
    assert "not enough of it" in text


def test_a_report_of_nothing_reaches_nothing() -> None:
    text = render(results({}))

    assert "| reached" not in text
    assert "0 of " in text


def test_the_machine_and_the_command_are_stated() -> None:
    text = render(results({}, resumed=["audit"]))

    assert "2 cores (a processor), 24 GiB of memory, ext4 on a virtual disk; Python 3.11.7, torch 2.13.0+cpu." in text
    assert "Made by `nox -s bench`" in text
    assert "interrupted" in text


def test_a_smoke_run_says_that_its_numbers_mean_nothing() -> None:
    quick = Settings(sizes=(10**8,), quick=True)

    assert "numbers mean nothing" in render(results({}, settings=quick.to_json()))
    assert "numbers mean nothing" not in render(results({}))


@pytest.mark.parametrize(
    ("reads", "value"),
    [
        ({"bytes_read": 130, "bytes_decoded": 104, "bytes_changed": 100}, 1.04),
        ({"bytes_read": 130, "bytes_decoded": None, "bytes_changed": 100}, 1.3),
        ({"bytes_read": 0, "bytes_decoded": None, "bytes_changed": 100}, None),
        (None, None),
    ],
)
def test_decoded_bytes(reads: dict[str, Any] | None, value: float | None) -> None:
    assert decoded(reads)[0] == value


def test_every_case_is_complete() -> None:
    names = [step.name for name in case_names() for step in load_case(name).steps(Settings())]

    assert case_names() == (
        "copy",
        "others",
        "exactness",
        "audit",
        "plan",
        "experts",
        "cells",
        "experts_gpu",
        "stage_time",
        "reuse",
    )
    assert choose(()) == usual_cases() == ("copy", "others", "exactness", "audit", "plan", "experts")
    assert choose(("experts_gpu", "cells")) == ("cells", "experts_gpu")
    assert len(set(names)) == len(names)
    assert choose(("plan", "copy")) == ("copy", "plan")
    with pytest.raises(UnknownNameError, match="'plann'"):
        choose(("plann",))


def test_the_full_run_has_the_pairs_that_were_promised() -> None:
    units = {step.name: step.units for step in load_case("copy").steps(Settings())}

    assert [
        units[f"copy/2000000000/{kind}/{state}"] for kind in ("experts", "attention") for state in ("cold", "warm")
    ] == [20] * 4
    assert [units[f"copy/16000000000/{kind}/cold"] for kind in ("experts", "attention")] == [5, 5]
    assert "copy/16000000000/experts/warm" not in units


def test_finished_steps_are_taken_over_only_by_the_same_run(tmp_path: Path) -> None:
    Store(tmp_path, {"settings": {"sizes": (1, 2)}}, resume=False).keep("one", {"x": 1})

    assert Store(tmp_path, {"settings": {"sizes": (1, 2)}}, resume=True).resumed == ("one",)
    assert Store(tmp_path, {"settings": {"sizes": (1, 2)}}, resume=False).resumed == ()
    assert Store(tmp_path, {"settings": {"sizes": (1, 3)}}, resume=True).resumed == ()


def test_a_finished_run_leaves_nothing_in_progress(tmp_path: Path) -> None:
    store = Store(tmp_path, {"settings": {}}, resume=False)
    store.keep("one", 1)
    store.finish()

    assert not (tmp_path / IN_PROGRESS).exists()
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == {"one": 1}


def test_readme_shows_the_goals_between_its_marks(tmp_path: Path) -> None:
    readme, report = tmp_path / "README.md", tmp_path / "report.md"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    options = ["--readme", str(readme), "--report", str(report)]

    assert main(["--check", *options]) == 1
    assert main(["--write", *options]) == 0
    assert "No run has been published yet." in readme.read_text()

    report.write_text(render(results({})))
    assert main(["--check", *options]) == 1
    assert main(["--write", *options]) == 0
    assert main(["--check", *options]) == 0
    assert overview(report.read_text()) in readme.read_text()
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("\nafter\n")


def test_a_readme_without_marks_is_an_error() -> None:
    with pytest.raises(ValueError, match="not found"):
        shown("no marks", None)


@pytest.mark.parametrize(
    ("name", "rotational", "words"),
    [
        ("vda", True, "virtual disk"),
        ("nvme0n1", False, "NVMe solid-state disk"),
        ("sda", False, "solid-state disk"),
        ("sda", True, "hard disk"),
        ("", None, "disk of unknown kind"),
    ],
)
def test_disks_in_words(name: str, rotational: bool | None, words: str) -> None:
    assert disk_words(name, rotational=rotational) == words
