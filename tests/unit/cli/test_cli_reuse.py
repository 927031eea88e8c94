"""Which kept results a command may reuse, and where it keeps them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.cli.execute import may_be_reused, users_results
from harness.cli.setup import load_setup
from harness.errors import ConfigurationError
from harness.matrix.cell import Cell
from harness.matrix.expectations import Expectation


def test_results_are_kept_in_the_users_cache_as_far_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MOE_LORA_HARNESS_CACHE", str(tmp_path))
    monkeypatch.delenv("MOE_LORA_HARNESS_RESULTS_SIZE", raising=False)
    kept = users_results()
    assert kept is not None
    assert kept.root == tmp_path / "results"

    monkeypatch.setenv("MOE_LORA_HARNESS_RESULTS_SIZE", "0")
    assert users_results() is None
    monkeypatch.setenv("MOE_LORA_HARNESS_RESULTS_SIZE", "much")
    with pytest.raises(ConfigurationError, match="is no size"):
        users_results()


def test_a_cell_that_is_declared_to_be_flaky_runs_each_time() -> None:
    setup = load_setup()
    stack = setup.config.declared[0]
    here, there = (Cell(family="qwen3_moe", recipe="lora", stack=stack, seed=seed) for seed in (0, 1))
    declared = Expectation.model_validate(
        {
            "cells": [here.id], "stage": "train", "outcome": "error", "reason": "now so, now so", "since": "2026-11-28",
            "link": "https://example.org/1", "flaky": True,
        }
    )  # fmt: skip

    assert [may_be_reused(replace(setup, expectations=(declared,)), cell) for cell in (here, there)] == [False, True]
