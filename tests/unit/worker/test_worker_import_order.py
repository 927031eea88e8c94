"""Where the usual order of imports fails: which others are tried, what the cell goes on with, and what is said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from harness.contract.bands import Bands
from harness.worker.import_order import ORDERS, USUAL, choose_another
from harness.worker.observation import Observation
from harness.worker.request import Request, read_request

BANDS = Bands(**{field.name: 0.0 for field in dataclasses.fields(Bands)})


@pytest.fixture
def request_of_cell(tmp_path: Path) -> Request:
    cell = {"family": "qwen3_moe", "recipe": "lora"}
    data = {
        "cell": cell, "work": str(tmp_path), "observation": str(tmp_path / "o.json"), "threads": 1,
        "bands": dataclasses.asdict(BANDS), "processes": "forked",
    }  # fmt: skip
    (tmp_path / "request.json").write_text(json.dumps(data))
    return read_request(tmp_path / "request.json")


def failed(request: Request, ended: str = "raised") -> Observation:
    observation = Observation(request.observation)
    observation.close("import", ended, reason="ImportError: HybridCache")  # type: ignore[arg-type]  # one of its ends
    return observation


def test_the_first_other_order_that_works_is_taken_by_every_process_of_the_cell(request_of_cell: Request) -> None:
    tried: list[str] = []

    def attempt(first: str, request: Request) -> str | None:
        assert request is request_of_cell
        tried.append(first)
        return None if first == "trl" else "no"

    chosen = choose_another(failed(request_of_cell), request_of_cell, attempt)

    assert tried == ["trl"]
    assert chosen is not None
    assert (chosen.import_first, chosen.import_failure) == ("trl", "ImportError: HybridCache")
    assert read_request(request_of_cell.file) == chosen


def test_where_no_order_works_the_reason_says_what_each_came_to(request_of_cell: Request) -> None:
    observation = failed(request_of_cell)

    assert choose_another(observation, request_of_cell, lambda first, _: f"{first} is broken") is None
    assert Observation.load(observation.path).data["stages"]["import"]["reason"] == (
        "ImportError: HybridCache; in no other order either: when trl comes first: trl is broken; "
        "when transformers comes first: transformers is broken"
    )
    assert read_request(request_of_cell.file).import_first == USUAL == ORDERS[0]


def test_another_order_is_tried_once_and_not_for_a_process_that_died(request_of_cell: Request) -> None:
    def attempt(first: str, request: Request) -> str | None:
        raise AssertionError(f"{first} was tried for {request}")

    again = dataclasses.replace(request_of_cell, import_first="trl")
    assert choose_another(failed(again), again, attempt) is None
    assert choose_another(failed(request_of_cell, "died"), request_of_cell, attempt) is None
