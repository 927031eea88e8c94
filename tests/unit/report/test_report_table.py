"""Rows, their order and their looks; the sentence; the data frame."""

from __future__ import annotations

import itertools
from typing import get_args

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import NEWEST, OLDEST, STACK, cell, measured, rejected, sample_rows, stopped

from harness.contract.outcomes import HARMLESS, OUTCOMES, Outcome, Status
from harness.report.details import sections
from harness.report.formats.csv_table import frame, render_csv
from harness.report.look import look, outcome_text, overview
from harness.report.remarks import remarks
from harness.report.summary import summarise
from harness.report.table import COLUMNS, Row, not_run, ordered
from harness.result import Check, LostAttempt, StageResult


def test_rows_are_sorted_newest_stack_first_whatever_order_they_come_in() -> None:
    rows = sample_rows()
    rows = rows[1::2] + rows[::2]

    found = [(row.result.cell.stack.transformers, row.result.cell.family) for row in ordered(rows)]

    assert [version for version, _ in itertools.groupby(version for version, _ in found)] == [
        "5.23.0", "5.6.2", "5.5.0", "4.57.6",
    ]  # fmt: skip
    assert [family for version, family in found if version == "5.6.2"] == ["deepseek_v3", "glm4_moe", "qwen3_moe"]


def test_two_results_of_one_cell_are_refused() -> None:
    row = sample_rows()[0]

    with pytest.raises(ValueError, match=r"two results for the cell qwen3_moe/lora@tf5\.5\.0"):
        ordered([row, row])


def test_the_columns_are_the_fields_own() -> None:
    assert [column.title for column in COLUMNS] == [
        "transformers", "peft", "trl", "family", "recipe", "merged by", "device", "merged tensors",
        "trained vs merged KL", "samples", "merged vs base KL", "trained vs base KL",
    ]  # fmt: skip


def test_texts_of_a_rejected_merge() -> None:
    row = next(row for row in sample_rows() if row.result.outcome == "fail")

    assert [column.text(row) for column in COLUMNS] == [
        "5.5.0", "0.19.1", "0.25.1", "qwen3_moe", "lora +seed=3", "reference", "cpu",
        "140/156 (8 without effect)", "0.55", "1/3", "0.081", "0.63",
    ]  # fmt: skip
    assert outcome_text(row) == "✗ fail in compare"


def test_a_right_merge_whose_adapter_cannot_be_reloaded_shows_both() -> None:
    row = next(row for row in sample_rows() if row.result.stage == "reload-adapter")
    texts = {column.key: column.text(row) for column in COLUMNS}

    assert (texts["merged"], texts["kl_trained_merged"], texts["samples"]) == ("156/156", "1.2e-13", "3/3")
    assert outcome_text(row) == "△ known error in reload-adapter"


def test_ok_and_a_failing_outcome_contradict_each_other() -> None:
    for outcome in OUTCOMES:
        result = stopped(cell("qwen3_moe"), outcome, "train", "x")
        if outcome in HARMLESS:
            assert Row(result=result, status="ok").standing == "ok"
        else:
            with pytest.raises(ValueError, match="cannot have the status 'ok'"):
                Row(result=result, status="ok")


def possible_rows() -> list[Row]:
    """Every combination of outcome and status that a row can have."""
    statuses: list[Status | None] = [*get_args(Status), None]
    rows = []
    for outcome, status in itertools.product(OUTCOMES, statuses):
        if status != "ok" or outcome in HARMLESS:
            rows.append(Row(result=measured(cell("qwen3_moe"), outcome=outcome), status=status))
    return rows


def test_only_an_expected_pass_looks_like_one() -> None:
    like_a_pass = [
        row
        for row in possible_rows()
        if row.passed or look(row).tone == "pass" or look(row).symbol == "✓" or look(row).word == "pass"
    ]

    assert [(row.result.outcome, row.status) for row in like_a_pass] == [("pass", "ok")]


GOOD = [row for row in possible_rows() if row.status == "ok"]


@given(st.one_of(st.lists(st.sampled_from(rows), max_size=12) for rows in (possible_rows(), GOOD)))
def test_green_means_all_ok_and_something_passed(rows: list[Row]) -> None:
    summary = summarise(rows)
    bad = [row for row in rows if row.status not in {"ok", "known-failure", "flaky"}]
    all_ok = all(row.status == "ok" for row in rows)

    assert (summary.colour == "green") == (all_ok and any(row.passed for row in rows))
    assert (summary.colour == "red") == (bool(bad) or not rows)
    assert sum(summary.standings.values()) == summary.cells == len(rows)


def _many(outcome: Outcome, status: Status, count: int) -> list[Row]:
    return [
        Row(result=stopped(cell("qwen3_moe", seed=seed), outcome, "load", "x"), status=status) for seed in range(count)
    ]


WHY, NEVER_MIND = "which is not possible on this stack", "The verdict does not depend on it."


def test_what_stands_beside_a_verdict_is_said_on_a_line_each() -> None:
    plain = measured(cell("qwen3_moe"))
    stages = plain.stages | {
        "import": StageResult(result="pass", reason="imports when trl comes first; when peft does: x")
    }
    odd = plain.model_copy(
        update={
            "stages": stages,
            "import_first": "trl",
            "not_possible": {"grouped_forward": "has_gate = None", "lora-on-conv1d": "PEFT refuses it."},
        }
    )

    assert list(remarks(plain)) == []
    assert list(remarks(odd)) == [
        "imports when trl comes first; when peft does: x",
        f"not tried: the forward grouped_forward, {WHY}: has_gate = None. {NEVER_MIND}",
        f"not tried: a LoRA on conv1d, {WHY}: PEFT refuses it. {NEVER_MIND}",
    ]
    assert "has_gate = None" in {
        text for s in sections(Row(result=odd, status="ok")) for it in s.lines for text in it.cells
    }


def test_what_was_lost_with_a_node_is_said() -> None:
    plain = measured(cell("qwen3_moe"))
    lost = [
        LostAttempt(node="2297429112c7", how="node"),
        LostAttempt(node=None, how="process"),
        LostAttempt(node="25bd3636f739", how="memory"),
    ]
    again = plain.model_copy(update={"node": "25bd3636f739", "lost": lost})
    words = "node 2297429112c7, its process on node that is not known, memory of node 25bd3636f739"

    assert list(remarks(again)) == [f"run again after 3 losses: {words}"]
    assert list(remarks(plain.model_copy(update={"lost": lost[:1]}))) == ["run again after 1 loss: node 2297429112c7"]
    told = {text for s in sections(Row(result=again, status="ok")) for it in s.lines for text in it.cells}
    assert {"25bd3636f739", f"run again after 3 losses: {words}"} <= told


def test_sentences() -> None:
    passes = [Row(result=measured(cell("qwen3_moe", seed=seed)), status="ok") for seed in range(50)]
    unsupported = _many("unsupported", "ok", 4)

    assert summarise([*passes, *unsupported]).sentence == "All 54 cells ok: 50 pass, 4 unsupported."
    assert (
        summarise([*passes, *unsupported, *_many("error", "known-failure", 2)]).sentence
        == "54 of 56 cells ok (50 pass, 4 unsupported); 2 known failures; nothing unexpected."
    )
    assert (
        summarise(
            [*passes, *_many("fail", "regression", 2), *_many("blind", "regression", 1), not_run(cell("glm4_moe"), "x")]
        ).sentence
        == "50 of 54 cells ok (50 pass); 3 regressions (2 fail, 1 blind), 1 not run."
    )
    assert (
        summarise([*passes, *_many("error", "new", 2), *_many("environment", "environment", 1)]).sentence
        == "50 of 53 cells ok (50 pass); 2 new failures (2 error), 1 not run for want of an environment."
    )
    assert summarise(passes[:1]).sentence == "The one cell ok: 1 pass."
    assert summarise(unsupported).sentence == "All 4 cells ok: 4 unsupported; nothing passed."
    assert summarise([]).sentence == "No cells: nothing was run."


def _planted(*, unnoticed_by: str | None = None) -> Row:
    """A cell whose fault every check rejected, or every check but one."""
    names = ("kl", "logprob", "applied")
    result = rejected(cell("qwen3_moe", fault="b-packing", seed=0 if unnoticed_by is None else 1))
    result.checks = [
        Check(name=name, stage="compare", value=int(name != unnoticed_by), band="<= 0", passed=name == unnoticed_by)
        for name in names
    ]
    return Row(result=result, status="planted")


def test_a_planted_fault_that_was_noticed_is_said_to_be_and_never_passes() -> None:
    summary = summarise([_planted()])

    assert summary.sentence == ("0 of 1 cell ok; 1 planted fault noticed, as it must be; such a cell never passes.")
    assert summary.colour == "red"
    assert str(look(_planted())) == "◎ fault noticed"
    assert not _planted().as_expected


@pytest.mark.parametrize("name", ["kl", "logprob", "applied"])
def test_a_planted_fault_that_a_check_let_through_is_loud(name: str) -> None:
    row = _planted(unnoticed_by=name)

    assert summarise([row, _planted()]).sentence.startswith("0 of 2 cells ok; 1 planted fault NOT NOTICED, 1 planted")
    assert look(row).word == "FAULT NOT NOTICED"
    assert look(row).tone == "bad"


def test_a_planted_fault_hides_no_other_failure() -> None:
    row = _planted()
    stages = row.result.stages | {"reload-adapter": StageResult(result="error", reason="no such argument")}
    worse = Row(result=row.result.model_copy(update={"stages": stages, "outcome": "error"}), status="planted")

    assert worse.standing == "planted"
    assert str(look(worse)) == "✗ fault unsettled"


def test_counts_leave_out_what_did_not_run() -> None:
    summary = summarise(sample_rows())

    assert summary.standings == {
        "regression": 1, "new": 4, "unexpected-pass": 1, "not-run": 2, "flaky": 1, "known-failure": 2, "ok": 6,
    }  # fmt: skip
    assert summary.outcomes["pass"] == 5, "three ok, one unexpected, one flaky"
    assert sum(summary.outcomes.values()) == 15


def test_overview_says_how_many_pass_beside_the_worst() -> None:
    rows = [row for row in sample_rows() if row.result.cell.family == "qwen3_moe"]
    found = {stack: line[0] for stack, _, _, line in overview(rows).lines}

    assert str(found[STACK.id]) == "✗ fail (2 of 4 pass)"
    assert found[STACK.id].share == "2 of 4 pass"


def test_overview_shows_the_worst_recipe() -> None:
    table = overview(sample_rows())
    cells = {
        (stack, family): str(found.worst)
        for stack, _, _, line in table.lines
        for family, found in zip(table.families, line, strict=True)
        if found is not None
    }

    assert table.families == ("deepseek_v3", "glm4_moe", "qwen3_5_moe", "qwen3_moe")
    assert table.lines[0][1] == "5.23.0 / 0.21.2 / 1.16.0"
    assert cells[(STACK.id, "qwen3_moe")] == "✗ fail", "two passes and a skip beside it do not hide it"
    assert cells[(STACK.id, "deepseek_v3")] == "✗ blind"
    assert cells[(OLDEST.id, "qwen3_5_moe")] == "∅ unsupported"
    assert cells[(OLDEST.id, "deepseek_v3")] == "? not run"
    assert (NEWEST.id, "qwen3_moe") not in cells


def test_frame_has_raw_numbers_and_their_counts() -> None:
    table = frame(sample_rows())
    failed = table.loc["qwen3_moe/lora@tf5.5.0-peft0.19.1-trl0.25.1+seed=3"]
    crashed = table.loc["deepseek_v3/lora@tf5.23.0-peft0.21.2-trl1.16.0"]
    noop = table.loc["glm4_moe/lora@tf5.5.0-peft0.19.1-trl0.25.1"]

    assert (failed["applied"], failed["attempted"], failed["kl_trained_merged"]) == (140, 156, 0.55)
    assert failed["samples"] == pytest.approx(1 / 3)
    assert (noop["merged"], noop["samples"]) == (0.0, 0.0), "nothing matched is a measurement"
    assert pd.isna(crashed["applied"])
    assert pd.isna(crashed["samples"])
    assert table["outcome"].value_counts()["pass"] == 5
    assert frame([]).empty
    assert render_csv([]).startswith("cell,transformers,peft,trl,family,recipe,engine,device,merged,")
