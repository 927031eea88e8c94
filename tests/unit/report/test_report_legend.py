"""What is said below a table of what is in it, and of nothing else."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from harness.report.legend import DOCS, SYMBOLS, legend
from harness.report.look import LEGEND
from harness.report.table import Row, not_run
from harness.report.terminal import print_table
from tests.unit.report.report_samples import cell, measured, sample_rows, stopped

ROOT = Path(__file__).resolve().parents[3]


def test_every_symbol_that_there_is_has_its_few_words() -> None:
    assert list(SYMBOLS) == [symbol for symbol, _ in LEGEND]
    assert (ROOT / DOCS).is_file()


def test_a_pass_is_explained_with_its_columns() -> None:
    assert legend([Row(result=measured(cell("qwen3_moe")), status="ok")]) == [
        (
            "merged tensors: hold base + delta, of those under a LoRA · samples: greedy ones that agree · "
            "KL in nats: near 0 from trained to merged · far from 0 to base"
        ),
        "✓ right in every check (docs/explanation/verdicts.md)",
    ]


def test_what_is_not_there_is_not_explained() -> None:
    row = Row(result=stopped(cell("qwen3_moe"), "error", "load", "x"), status="new")

    assert legend([row]) == ["✗ a failure that nobody declared (docs/explanation/verdicts.md)"]
    assert legend([row, not_run(cell("glm4_moe"), "x")])[0].startswith("✗ a failure that nobody declared · ? was not")
    assert legend([]) == []


def test_it_stands_between_the_table_and_its_sentence() -> None:
    screen = Console(file=io.StringIO(), width=60, force_terminal=False)
    print_table(screen, sample_rows())
    lines = str(screen.file.getvalue()).splitlines()  # type: ignore[attr-defined]

    symbols = next(number for number, line in enumerate(lines) if line.startswith("✓ right in every check · "))
    assert lines[symbols].endswith(f"({DOCS})")
    assert lines[symbols - 1].startswith("merged tensors: ")
    assert any(line.startswith("Needs a look.") for line in lines[symbols:])
