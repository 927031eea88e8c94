"""QLoRA cells in every format: what was quantised, what that costs and what merging costs, never one for another."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from report_samples import cell, measured, on_codes, sample_rows
from rich.console import Console

from harness.report.details import sections
from harness.report.figures import MISSING
from harness.report.formats.csv_table import frame, render_csv
from harness.report.formats.html import render_html
from harness.report.formats.markdown import render_markdown
from harness.report.quantized import COLUMNS, FOOTNOTE, lines
from harness.report.shims import note
from harness.report.table import COLUMNS as MAIN_COLUMNS
from harness.report.table import Row
from harness.report.terminal import print_table
from harness.result import CellResult, Metrics, QuantizationInfo

ROOT = Path(__file__).resolve().parents[3]
SHIMMED = "with the shim weight-converter-arguments: this is not the stack as it is"


def _row() -> Row:
    return Row(result=on_codes(cell("glm4_moe", "qlora4", geometry="blocks")), status="ok")


def _printed(rows: list[Row], *, width: int, terminal: bool) -> str:
    file = io.StringIO()
    print_table(Console(file=file, width=width, force_terminal=terminal, color_system=None, highlight=False), rows)
    return " ".join(file.getvalue().split())


def test_a_run_says_what_was_quantised_and_what_it_costs() -> None:
    assert lines(_row()) == [
        "Quantised bases",
        (
            "  quantised: experts 1,179,648 of 1,179,648 weights, 0.260 of their bytes in 16 bits; "
            "Linears 319,488 of 333,184"
        ),
        "  base           quantisation costs   merging adds     (KL)",
        "  original                     0.24       7.00e-13",
        "  dequantised              1.10e-12       7.60e-13",
        "  LoRA trained in bfloat16, float32: its rounding is part of what quantisation costs here",
    ]
    assert lines(Row(result=measured(cell("glm4_moe")), status="ok")) == []


def test_a_run_that_did_not_get_to_comparing_says_what_was_quantised() -> None:
    row = _row()
    row.result.metrics = Metrics()
    row.result.training = None

    assert [line.split(":")[0].strip() for line in lines(row)] == ["Quantised bases", "quantised"]


def test_a_gap_without_a_merge_error_is_said_as_such() -> None:
    row = _row()
    row.result.metrics.kl_dequantized_merged = None

    assert lines(row)[4].split() == ["dequantised", "1.10e-12", MISSING]


def test_markdown_has_the_gap_and_the_merge_error_apart() -> None:
    page = render_markdown([*sample_rows(), _row()])
    section = page[page.index("## Quantised bases") :]
    head = next(line for line in section.splitlines() if "peak RSS, MiB" in line)
    line = next(line for line in section.splitlines() if "qlora4@" in line)

    assert len(head.split("|")) == len(line.split("|")) == len(COLUMNS) + 3
    assert [text.strip() for text in line.strip("|").split("|")][1:] == [
        "1,179,648/1,179,648", "0.260", "319,488/333,184", "`bfloat16, float32`", "0.24", "7.00e-13", "1.10e-12",
        "7.60e-13", "571", "`weight-converter-arguments`",
    ]  # fmt: skip
    assert "Quantised base" not in render_markdown(sample_rows())


def test_html_has_the_same_table_without_a_script() -> None:
    page = render_html([*sample_rows(), _row()])
    body = page[: page.index("<script")]
    section = body[body.index('id="quantized-title"') :]

    for text in ("1,179,648/1,179,648", "0.260", "bfloat16, float32", "0.24", "7.00e-13", "1.10e-12", "7.60e-13"):
        assert f">{text}</td>" in section
    assert section.index('class="scroll"') < section.index("<table")
    assert f"<small>{SHIMMED}</small>" in body
    assert "quantized-title" not in render_html(sample_rows())


def test_csv_has_raw_numbers_and_nothing_where_nothing_was_quantised() -> None:
    table = {line["cell"]: line for line in csv.DictReader(io.StringIO(render_csv([*sample_rows(), _row()])))}
    codes = table[_row().result.cell_id]
    plain = table[sample_rows()[0].result.cell_id]

    assert float(codes["experts_quantized"]) == 1.0
    assert float(codes["experts_of_16_bits"]) == pytest.approx(613056 / 2359296)
    assert float(codes["linears_quantized"]) == pytest.approx(319488 / 333184)
    assert (float(codes["kl_quantization_gap_original"]), float(codes["kl_reference_merged"])) == (0.24, 7e-13)
    assert (float(codes["kl_quantization_gap_dequantized"]), float(codes["kl_dequantized_merged"])) == (
        1.1e-12,
        7.6e-13,
    )
    assert (codes["lora_dtypes"], codes["shims"]) == ("bfloat16, float32", "weight-converter-arguments")
    assert [plain[column.key] for column in COLUMNS if column.key != "peak_rss_mb"] == [""] * (len(COLUMNS) - 1)
    assert float(plain["peak_rss_mb"]) == 571.3
    assert not {column.key for column in COLUMNS} & {column.key for column in MAIN_COLUMNS}
    assert frame([]).empty


def test_the_kl_of_a_qlora_row_is_explained_under_the_table_and_only_there() -> None:
    with_codes, without = [*sample_rows(), _row()], sample_rows()
    for render in (render_markdown, render_html):
        assert FOOTNOTE in render(with_codes)
        assert "QLoRA rows" not in render(without)
    for width, terminal in ((80, False), (60, True), (200, True)):
        assert FOOTNOTE in _printed(with_codes, width=width, terminal=terminal)
        assert "QLoRA rows" not in _printed(without, width=width, terminal=terminal)


def test_details_say_that_a_shimmed_stack_is_not_the_stack() -> None:
    (opened,) = [section for section in sections(_row()) if section.title == "Quantised base"]
    shown = dict(line.cells for line in opened.lines)

    assert (shown["gap, original"], shown["LoRA"], shown["note"]) == ("0.24", "bfloat16, float32", SHIMMED)
    assert note(measured(cell("glm4_moe"))) is None


def test_the_dtypes_of_the_lora_are_counted_in_the_details_of_any_cell() -> None:
    result = measured(cell("glm4_moe"))
    assert result.training is not None
    result.training.lora_dtypes = {"float32": 24}
    (opened,) = [section for section in sections(Row(result=result, status="ok")) if section.title == "Training"]

    assert ("LoRA tensors in float32", "24") in [line.cells for line in opened.lines]


def test_results_of_earlier_versions_are_read() -> None:
    published = json.loads((ROOT / "reports" / "default" / "report.json").read_text("utf-8"))["rows"]
    trained = [row["result"]["training"] for row in published if row["result"]["training"]]

    assert trained
    for row in published:
        row["result"]["training"] = row["result"]["training"] and {
            key: value for key, value in row["result"]["training"].items() if key != "lora_dtypes"
        }
        training = CellResult.model_validate(row["result"]).training
        assert training is None or training.lora_dtypes == {}


def test_kinds_and_shims_may_grow_but_not_into_free_text() -> None:
    kind = {"quantized": 0, "plain": 1, "stored_bytes": 4, "bf16_bytes": 2}

    assert QuantizationInfo.model_validate({"kinds": {"adapters": kind, "other": kind}}).kinds["adapters"].plain == 1
    with pytest.raises(ValidationError):
        QuantizationInfo.model_validate({"kinds": {"=cmd|x": kind}})
    for shim in ("=HYPERLINK()", "a|b", "-1", "a\nb"):
        with pytest.raises(ValidationError):
            CellResult.model_validate(measured(cell("glm4_moe")).model_dump() | {"shims": [shim]})
