"""The contract against lists written by hand: what is removed from a table, or moved, is noticed here."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from harness.contract import outcomes, stages
from harness.contract.cell_fields import DEFAULTS, MEANINGS
from harness.contract.checks import NAME_PATTERN, TABLE, Gate, find, needed
from harness.contract.facts import CellFacts
from harness.contract.outcomes import Outcome, worst
from harness.contract.stages import STAGES, WORKER_STAGES, StageName
from harness.contract.tensors import COUNTS
from harness.faults import fault, fault_names
from harness.matrix.expectations import Expectation
from harness.report import contract_tables
from harness.result import HOST_FIELDS, WORKER_FIELDS, CellResult

PLAIN = CellFacts(kinds=("attention", "expert"), quantized=False, fused_experts=True, defined=True)

ALWAYS = {
    ("attached", "attach"), ("unchanged", "train"), ("generation", "generate"), ("cache", "generate"),
    ("steps", "train"),
    ("update", "train"), ("gradients", "train"),
    ("loss", "train"), ("coverage", "train"), ("attached", "save"), ("attached", "reload-adapter"),
    ("adapter_reload", "reload-adapter"), ("signal", "compare"), ("kl", "compare"), ("logprob", "compare"),
    ("samples", "compare"), ("applied", "compare"), ("exact", "compare"), ("coverage", "compare"),
    ("untouched_bytes", "compare"), ("keys", "compare"), ("dtypes", "compare"), ("files", "compare"),
    ("claims", "compare"), ("objective", "train"), ("gradient", "train"), ("precision", "train"),
}  # fmt: skip
BROKEN_MERGES = {
    (name, "compare") for name in ("kl", "logprob", "applied", "exact", "untouched_bytes", "keys", "dtypes", "files")
}
"""Checks whose controls are merges that are broken on purpose."""
WITH_PATHS = {("forward_paths", "forward-paths")}
PLAINLY = {("modes", "train")}
RESUMED = {("resumed", "train")}
PER_EXPERT = {("per_expert", "reload-adapter")}
DEFINED = {
    *(("definition", stage) for stage in ("load", "save", "reload-adapter", "compare")), ("derivative", "save"),
}  # fmt: skip
QUANTIZED = {
    ("quantized", "load"),
    ("census", "load"),
    ("coding", "load"),
    ("kl_dequantized", "compare"),
    ("applied_dequantized", "compare"),
    ("untouched_dequantized", "compare"),
}


def test_the_checks_are_these() -> None:
    all_of_them = ALWAYS | PLAINLY | DEFINED | WITH_PATHS | QUANTIZED | RESUMED | PER_EXPERT
    assert {(check.name, check.stage) for check in TABLE} == all_of_them
    assert len(TABLE) == len(all_of_them)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (PLAIN, ALWAYS | PLAINLY | DEFINED | WITH_PATHS),
        (replace(PLAIN, plain_batches=False), ALWAYS | PLAINLY | DEFINED | WITH_PATHS),
        (replace(PLAIN, resumed=True), ALWAYS | PLAINLY | DEFINED | WITH_PATHS | RESUMED),
        (replace(PLAIN, per_expert=True), ALWAYS | PLAINLY | DEFINED | WITH_PATHS | PER_EXPERT),
        (replace(PLAIN, defined=False), ALWAYS | PLAINLY | WITH_PATHS),
        (replace(PLAIN, quantized=True), ALWAYS | DEFINED | WITH_PATHS | QUANTIZED),
        (replace(PLAIN, kinds=("attention",)), ALWAYS | PLAINLY | DEFINED | WITH_PATHS),
        (replace(PLAIN, fused_experts=False), ALWAYS | PLAINLY | DEFINED | WITH_PATHS),
        (replace(PLAIN, fused_experts=False, adapters_on_experts=2), ALWAYS | PLAINLY | DEFINED),
        (replace(PLAIN, kinds=("attention",), fused_experts=False), ALWAYS | PLAINLY | DEFINED),
    ],
)
def test_a_pass_needs_what_applies_to_its_cell(facts: CellFacts, expected: set[tuple[str, str]]) -> None:
    checks = {(check.name, check.stage) for check in needed(facts) if not check.name.startswith("control:")}
    controls = {(check.name, check.stage) for check in needed(facts)} - checks

    assert checks == expected
    assert controls == {(f"control:{name}", stage) for name, stage in expected if (name, stage) not in BROKEN_MERGES}


def names_of_gate(gate: Gate) -> set[str]:
    return {check.name for check in TABLE if check.gate == gate}


def test_the_gates_are_these() -> None:
    assert names_of_gate("functional") == {"definition", "kl", "logprob", "samples", "kl_dequantized"}
    assert names_of_gate("tensor") == {
        "applied", "claims", "exact", "untouched_bytes", "keys", "dtypes", "files", "applied_dequantized",
        "untouched_dequantized",
    }  # fmt: skip


def test_only_the_signal_and_controls_blind_a_cell() -> None:
    assert {check.name for check in TABLE if check.failing != "fail"} == {"signal"}
    assert find("signal", "compare").failing == find("control:base-copied", "controls").failing == "blind"
    assert find("control:loss", "train").failing == "blind"
    with pytest.raises(KeyError):
        find("control:loss", "compare")
    with pytest.raises(KeyError):
        find("control:applied", "compare")


@pytest.mark.parametrize(
    "name", ["attached", "kl_dequantized", "control:base-copied", "control:b-packing", "control:adapter_reload"]
)
def test_names_of_checks_fit_the_pattern(name: str) -> None:
    assert re.match(NAME_PATTERN, name)


@pytest.mark.parametrize("name", ["", "vibes", "kl2", "control:", "control:A", "control:-a", "kl\n", "xkl"])
def test_other_names_do_not(name: str) -> None:
    assert not re.fullmatch(NAME_PATTERN.strip("^$"), name)


def test_the_stages_are_these_and_each_needs_only_earlier_ones() -> None:
    assert STAGES == (
        "resolve", "install", "import", "build", "load", "attach", "train", "save", "generate", "forward-paths",
        "reload-adapter", "merge", "reload-merged", "generate-merged", "compare", "controls",
    )  # fmt: skip
    assert STAGES[2:] == WORKER_STAGES
    assert tuple(stages.TABLE) == STAGES
    needs: dict[StageName, tuple[StageName, ...]] = {name: stage.needs for name, stage in stages.TABLE.items()}
    assert all(STAGES.index(need) < STAGES.index(name) for name, found in needs.items() for need in found)
    assert needs["merge"] == needs["reload-adapter"] == ("save",), "the merge does not wait for the adapter's reload"
    tried = {"generate", "forward-paths", "generate-merged"}
    needing = {name: tried & set(found) for name, found in needs.items() if tried & set(found)}
    assert needing == {"generate-merged": {"generate"}}, "what is tried besides can stop nothing else"


def test_the_outcomes_are_these_worst_first() -> None:
    assert outcomes.OUTCOMES == (
        "crash", "oom", "timeout", "error", "noop", "fail", "blind", "environment", "unresolvable", "unsupported",
        "skipped", "pass",
    )  # fmt: skip
    assert tuple(outcomes.MEANINGS) == outcomes.OUTCOMES
    assert outcomes.OUTCOMES[-3:] == outcomes.HARMLESS


@pytest.mark.parametrize(
    ("some", "expected"),
    [(["pass", "fail", "blind"], "fail"), (["pass", "skipped"], "skipped"), (["error", "oom"], "oom"), ([], "pass")],
)
def test_the_worst_outcome_decides(some: list[Outcome], expected: Outcome) -> None:
    assert worst(some) == expected


def test_every_failure_can_be_declared() -> None:
    """A Literal cannot be computed, so the one in expectations is held against the table.

    What is the machine's fault is no failure of a cell, so that nobody can declare it.
    """
    for outcome in outcomes.OUTCOMES:
        fields = {"cells": ["*"], "stage": "save", "outcome": outcome, "reason": "why", "since": "1"}
        if outcome in {"pass", "unsupported", "environment"}:
            with pytest.raises(ValueError, match=r"outcome|cannot lack in save"):
                Expectation.model_validate(fields)
        else:
            assert Expectation.model_validate(fields).outcome == outcome
    lacking = {"cells": ["*"], "stage": "load", "outcome": "unsupported", "reason": "why", "since": "1"}
    assert Expectation.model_validate(lacking).outcome == "unsupported"


def test_a_worker_may_not_conclude() -> None:
    assert not {"outcome", "stage", "reason", "cell", "cell_id", "seed", "lock_sha256"} & WORKER_FIELDS
    assert set(CellResult.model_fields) == HOST_FIELDS | WORKER_FIELDS
    assert {"stages", "checks", "facts", "merge", "controls", "metrics"} <= WORKER_FIELDS


def test_the_counts_of_a_merge_are_these() -> None:
    assert COUNTS == ("attempted", "applied", "zero_delta", "below_rounding", "dropped", "wrong")


FIELDS = {
    "geometry": "distinct", "variant": "published", "dtype": "float32", "device": "cpu", "engine": "reference",
    "seed": 0, "fault": None,
}  # fmt: skip
"""Every field of a cell but family and recipe, with what it is unless something else is asked for."""


def test_the_fields_of_a_cell_are_these() -> None:
    assert DEFAULTS == FIELDS
    assert MEANINGS.keys() == {"family", "recipe", *FIELDS}


def test_each_table_stands_in_one_page() -> None:
    """A page that lost its mark would keep an old table, or none, and nobody would be told."""
    marked = [f"<!-- {name} -->\n<!-- /{name} -->" for name in contract_tables.TABLES]

    assert contract_tables.misplaced(marked) == []
    assert contract_tables.misplaced(marked[1:]) == ["the table of outcomes stands in 0 places, not in one"]
    assert contract_tables.misplaced([*marked, marked[0]]) == ["the table of outcomes stands in 2 places, not in one"]


def test_the_check_fails_for_a_page_without_its_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = {path.name: contract_tables.with_tables(path.read_text("utf-8")) for path in contract_tables.PAGES}
    for name, text in pages.items():
        (tmp_path / name).write_text(text.replace("<!-- stages -->", ""), encoding="utf-8")
    monkeypatch.setattr(contract_tables, "PAGES", tuple(tmp_path / name for name in pages))

    assert contract_tables.main(["--check"]) == 1
    assert "the table of stages stands in 0 places" in capsys.readouterr().err


def test_a_control_is_part_of_both_gates() -> None:
    row = next(line for line in contract_tables.check_table().splitlines() if "control:" in line)

    assert row.startswith("| `control:<fault>` | controls | both |")


def test_every_check_has_a_control() -> None:
    assert [f"{check.stage}/{check.name}" for check in TABLE if not contract_tables.guards_of(check)] == []
    assert contract_tables.guards_of(find("exact", "compare")) == ("`one-delta-off`",)
    assert contract_tables.guards_of(find("loss", "train")) == ("the losses change places",)


def test_what_a_fault_must_be_noticed_by_are_checks_or_stages() -> None:
    known = {f"{check.stage}/{check.name}" for check in TABLE} | set(WORKER_STAGES)

    assert {
        name: sorted(fault(name).noticed_by - known) for name in fault_names() if fault(name).noticed_by - known
    } == {}
    assert [name for name in fault_names() if not fault(name).noticed_by or not fault(name).breaks] == []
