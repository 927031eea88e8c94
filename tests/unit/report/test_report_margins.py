"""Margins: of each check the worst clean value beside its mildest control."""

from __future__ import annotations

import pytest
from report_samples import cell, measured

from harness.contract.readings import is_nearer, limit_of
from harness.report.margins import margins, mildest_broken
from harness.result import CellResult, Check, ControlResult


def cell_with(kl: float, own: float, broken: float) -> CellResult:
    """Return a cell with a check of training that has its own control, and a KL that was measured of broken merges."""
    result = measured(cell("qwen3_moe"))
    result.checks = [
        Check(name="update", stage="train", value=kl, band="<= 1, a share", passed=True),
        Check(name="control:update", stage="train", value=own, band="not <= 1, a share", passed=True),
        Check(name="gradients", stage="train", value=0, band="== 0 of 4", passed=True),
        Check(name="signal", stage="compare", value=kl + 0.2, band=">= 0.1", passed=True),
        Check(name="kl", stage="compare", value=kl, band="<= 1e-09", passed=kl < 1e-9),
    ]
    result.controls = [
        ControlResult(name="base-copied", rejected=True, by=["kl", "applied", "logprob"], values={"kl": broken}),
        ControlResult(name="b-packing", rejected=True, by=["kl", "applied", "logprob"], values={"kl": broken * 2}),
    ]
    return result


def test_the_worst_clean_value_stands_beside_the_mildest_control() -> None:
    found = {it.name: it for it in margins([cell_with(1e-12, 99, 0.3), cell_with(3e-12, 40, 0.5)])}

    assert set(found) == {"update", "signal", "kl"}, "what asks for one value has no margin"
    assert (found["update"].worst, found["update"].mildest) == (3e-12, 40)
    assert (found["kl"].worst, found["kl"].mildest, found["kl"].limit) == (3e-12, 0.3, "<= 1e-09")
    assert (found["signal"].worst, found["signal"].mildest) == (0.2 + 1e-12, None)


def test_what_failed_is_no_clean_value() -> None:
    found = {it.name: it for it in margins([cell_with(0.5, 99, 0.3), cell_with(1e-12, 99, 0.3)])}

    assert found["kl"].clean == [1e-12]


def test_a_cell_s_page_names_the_broken_merge_that_came_nearest() -> None:
    result = cell_with(1e-12, 99, 0.3)
    kl = result.checks[-1]

    broken = mildest_broken(result, kl)
    assert broken is not None
    assert broken.name == "base-copied"
    assert mildest_broken(result, result.checks[0]) is None, "no broken merge is a control of training"


@pytest.mark.parametrize(
    ("band", "limit"), [("<= 1e-09", "<= 1e-09"), (">= 1 matched", ">= 1"), ("== 4", None), ("all attempted", None)]
)
def test_a_limit_is_a_comparison_without_words(band: str, limit: str | None) -> None:
    assert limit_of(band) == limit


def test_nearer_is_by_the_limit_s_own_direction() -> None:
    assert is_nearer(0.1, 0.2, "<= 1")
    assert is_nearer(0.2, 0.1, ">= 1")
    assert not is_nearer(0.1, 0.1, "<= 1")
