"""What cells are expected to cost, and the published file that says so on every machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.matrix import published
from harness.matrix.catalogue import Catalogue
from harness.matrix.cell import Cell
from harness.matrix.config import MatrixConfig
from harness.matrix.costs import PUBLISHED, UNKNOWN, Cost, Costs, published_costs, published_seconds
from harness.matrix.plan import Selection, plan_cells

FIRST = "tf5.5.0-peft0.19.1-trl0.25.1"
ELSEWHERE = "tf4.0.0-peft0.1-trl0.1"


def cost(seconds: float, memory_mb: float = 100.0) -> Cost:
    return Cost(seconds=seconds, memory_mb=memory_mb)


def the_cell(config: MatrixConfig, catalogue: Catalogue, glob: str) -> Cell:
    (found,) = plan_cells(config, catalogue, Selection(profile="nightly", select=(glob,)))
    return found


def test_an_unknown_cell_costs_what_is_nearest_to_it(config: MatrixConfig, catalogue: Catalogue) -> None:
    alpha = the_cell(config, catalogue, f"alpha/lora@{FIRST}")
    own = {alpha.id: cost(1)}
    stacks = {f"alpha/lora@{ELSEWHERE}": cost(10, 300), f"alpha/lora@{ELSEWHERE}+python=3.12": cost(99)}
    same = {f"alpha/lora@tf4.0.{n}-peft0.1-trl0.1": cost(20 + n, 400) for n in (1, 2)}
    recipe = {f"gamma/lora@{ELSEWHERE}": cost(70), f"gamma/lora@{ELSEWHERE}+geometry=square": cost(1000)}

    assert Costs({**own, **stacks}).of(alpha) == cost(1)
    assert Costs({**stacks, **same, **recipe}).of(alpha) == cost(21, 400), "of 10, 21, 22; of 300, 400, 400"
    assert Costs({**recipe, f"gamma/lora@{ELSEWHERE}+dtype=bf16": cost(80)}).of(alpha) == cost(75), "of its geometry"
    assert Costs({f"gamma/other@{ELSEWHERE}": cost(7)}).of(alpha) == cost(7), "of anything"
    assert Costs({}).of(alpha) == UNKNOWN
    assert Costs(stacks).updated(own).of(alpha) == cost(1)


def test_a_cell_on_a_gpu_is_like_no_other(config: MatrixConfig, catalogue: Catalogue) -> None:
    known = {f"alpha/lora@{ELSEWHERE}": cost(5), f"gamma/lora@{ELSEWHERE}+device=cuda": cost(50)}
    (cell,) = plan_cells(config, catalogue, Selection(device="cuda", select=(f"alpha/lora@{FIRST}*",)))

    assert Costs(known).of(cell) == cost(50)


def test_what_is_published_is_the_reports(tmp_path: Path) -> None:
    def row(name: str, outcome: str, seconds: float | None, peak: float | None) -> dict[str, object]:
        timings = {} if seconds is None else {"cell": seconds}
        return {"cell": name, "result": {"outcome": outcome, "timings": timings, "peak_rss_mb": peak}}

    rows = [
        row("b", "pass", 1.26, 99.6),
        row("a", "error", 0.4, 10.0),
        row("dead", "oom", 3.0, 8192.0),
        row("c", "pass", None, 1.0),
        row("d", "pass", 1.0, None),
    ]
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "report.json").write_text(json.dumps({"rows": rows}))

    assert published.render_costs(tmp_path) == '{\n "a": [0.4, 10],\n "b": [1.3, 100]\n}\n'


def test_the_published_file_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(published, "PUBLISHED", tmp_path / "costs.json")
    monkeypatch.chdir(Path(__file__).parents[3])

    assert published.main(["--check"]) == 1
    assert "costs.json is not up to date" in capsys.readouterr().err
    assert published.main(["--write"]) == 0
    assert published.main(["--check"]) == 0


def test_the_file_that_is_shipped_is_read(config: MatrixConfig, catalogue: Catalogue) -> None:
    entries = json.loads(PUBLISHED.read_text())
    assert len(entries) > 100
    assert all(0 < seconds < 1000 and 50 < mb < 20000 for seconds, mb in entries.values())
    cell = the_cell(config, catalogue, f"alpha/lora@{FIRST}")
    assert published_seconds(cell) == published_costs().of(cell).seconds
