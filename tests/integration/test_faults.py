"""Whether anything gets past the checks: every fault planted, at night, and each check put to sleep in a cell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from real_stacks import NEWEST, ask, harness, made_once, shared_folder

from harness.contract.checks import TABLE, Check
from harness.contract.facts import CellFacts
from harness.execution.decision import EndedStage, decide
from harness.execution.observation import parse_observation
from harness.execution.request import WorkerRequest
from harness.faults import fault, fault_names
from harness.matrix.catalogue import read_catalogue
from harness.matrix.config import load_config
from harness.matrix.locate import find_config
from harness.matrix.plan import one_cell
from harness.result import CellResult

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

PLAIN = CellFacts(kinds=("attention", "expert"), quantized=False, fused_experts=True, defined=True)


# The catalogue


@pytest.fixture(scope="session")
def catalogue_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``harness faults`` left behind."""
    out = shared_folder(tmp_path_factory) / "faults"

    def run() -> dict[str, Any]:
        done = harness("faults", "--out", out)
        return {"code": done.returncode, "output": done.stdout + done.stderr}

    ran: dict[str, Any] = made_once(tmp_path_factory, "faults-run", run)
    return {**ran, "table": json.loads((out / "faults.json").read_text())}


@pytest.mark.nightly
def test_every_fault_is_noticed_by_the_checks_that_it_names(catalogue_run: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in catalogue_run["table"]["rows"]}

    assert rows.keys() == set(fault_names())
    missed = {name: row["sentence"] for name, row in rows.items() if row["state"] != "noticed"}
    assert {name: words for name, words in missed.items() if fault(name).blind is None} == {}
    assert sorted(name for name in rows if fault(name).blind and name not in missed) == [], "they are noticed now"


@pytest.mark.nightly
def test_the_same_cells_with_nothing_planted_pass(catalogue_run: dict[str, Any]) -> None:
    table = catalogue_run["table"]

    assert table["false_alarms"] == {}
    assert len(table["clean"]) >= 5
    assert table["rejected"] == table["controls"] > 0
    assert catalogue_run["code"] == 0, catalogue_run["output"]
    assert table["sentence"] in catalogue_run["output"]


def test_every_check_is_named_by_some_fault() -> None:
    """So a check that is taken away, or falls asleep, is a fault that is missed."""
    seen = (fault(name) for name in fault_names())
    named = frozenset[str]().union(*(found.noticed_by for found in seen if found.blind is None))

    assert sorted({f"{check.stage}/{check.name}" for check in TABLE} - named) == []


# Each check asleep


@pytest.fixture(scope="session")
def asleep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """``stage/check`` → what a cell's worker wrote with that check asleep."""

    def run() -> dict[str, dict[str, Any]]:
        scratch = tmp_path_factory.mktemp("asleep")
        cases = [_case(check, scratch) for check in TABLE]
        said = ask(NEWEST, Path(__file__).with_name("asleep_program.py"), cases, scratch)
        return {f"{case['stage']}/{case['check']}": found for case, found in zip(cases, said, strict=True)}

    found: dict[str, dict[str, Any]] = made_once(tmp_path_factory, "asleep", run)
    return found


def _recipe_with(check: Check) -> str:
    """Return a recipe whose cells have a check."""
    facts = {
        "lora": PLAIN,
        "lora-resumed": replace(PLAIN, resumed=True),
        "lora-per-expert": replace(PLAIN, per_expert=True),
    }
    return next((recipe for recipe, known in facts.items() if check.applies(known)), "qlora4")


def _case(check: Check, scratch: Path) -> dict[str, Any]:
    config = load_config(find_config(), read_catalogue())
    stack = next(stack for stack in config.declared if stack.id == NEWEST)
    recipe = _recipe_with(check)
    cell = one_cell(read_catalogue(), stack, family="qwen3_moe", recipe=recipe)
    work = scratch / check.stage / check.name
    work.mkdir(parents=True)
    bands = config.bands_of(engine=cell.engine, dtype=cell.dtype, geometry=cell.geometry).model_dump()
    request = WorkerRequest(cell=cell, work=work, bands=bands, threads=2)
    return {"request": str(request.write()), "stage": check.stage, "check": check.name}


@pytest.mark.parametrize("name", [f"{check.stage}/{check.name}" for check in TABLE])
def test_a_check_that_is_asleep_makes_the_cell_blind(asleep: dict[str, dict[str, Any]], name: str) -> None:
    stage, check = name.split("/")
    seen = parse_observation(json.dumps(asleep[name]).encode())
    fields = dict(seen.fields)
    ended = {key: EndedStage(**how) for key, how in fields.pop("stages").items()}  # type: ignore[attr-defined]
    config = load_config(find_config(), read_catalogue())
    stack = next(stack for stack in config.declared if stack.id == NEWEST)
    recipe = _recipe_with(next(it for it in TABLE if (it.stage, it.name) == (stage, check)))
    cell = one_cell(read_catalogue(), stack, family="qwen3_moe", recipe=recipe)
    result = decide(CellResult(cell=cell, cell_id=cell.id, outcome="error", **fields), ended)  # type: ignore[arg-type]

    assert result.outcome == "blind", result.reason
    assert check in str(result.reason)
    assert result.stage in {stage, "controls"}
