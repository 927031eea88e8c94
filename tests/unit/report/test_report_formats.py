"""Each format says the same thing, in the same bytes every time, and obeys nothing that a result says."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from report_samples import LINK, TYPE_ERROR, UNRECOGNISED, cell, measured, sample_rows, stopped
from rich.console import Console

from harness.cli.execute import judged
from harness.cli.setup import load_setup
from harness.contract.outcomes import Outcome, Status
from harness.report.details import sections, web_link
from harness.report.formats.html import render_html
from harness.report.formats.json_report import render_json
from harness.report.formats.junit import render_junit
from harness.report.formats.markdown import code_block, code_span, render_markdown
from harness.report.last_run import last_run
from harness.report.table import Row, not_run
from harness.report.terminal import print_declared, print_failure, print_table
from harness.report.write import write_report
from harness.result import CellResult, Check, Metrics

ROOT = Path(__file__).resolve().parents[3]
NASTY = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m | ``` ~~~ @somebody [x](javascript:1) "
    "\u202e &amp; ]]> <!-- {{ 7*7 }} '\"\n# heading\n\n````\n---"
)
HOSTILE = st.one_of(
    st.text(st.characters(codec=None), max_size=60),
    st.text(st.sampled_from("`|<>&\"'\\\n\r\x1b[]()#*_-@!{}%/ ab"), max_size=60),
)


def hostile_row(text: str) -> Row:
    """A regression in which every free text is ``text`` (validation of the models is passed over on purpose)."""
    result = measured(cell("qwen3_moe"), outcome="fail", stage="compare")
    check = Check.model_construct(name="kl", stage="compare", value=text, band=text, passed=False, detail=text)
    fields = {
        "reason": text,
        "platform": text,
        "python": text,
        "log": text,
        "versions": {text: text},
        "checks": [check],
    }
    return Row(
        result=result.model_copy(update=fields),
        status="regression",
        expectation_reason=text,
        expectation_link=text,
        sentence=text,
    )


class Page(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and text per element name."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the element."""
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "input", "col"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close up to the element."""
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        """Note the text under the innermost element."""
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def data(self) -> list[dict[str, object]]:
        """The embedded details."""
        found: list[dict[str, object]] = json.loads(self.texts["script"][0])
        return found


RENDERERS = [render_markdown, render_html, render_json, render_junit]


@pytest.mark.parametrize("render", RENDERERS)
def test_same_rows_same_bytes_in_any_order(render: object) -> None:
    assert callable(render)
    rows = sample_rows()
    expected = render(rows)

    assert render(rows[::-1]) == expected
    assert render(rows[1::2] + rows[::2]) == expected
    assert "2026-11-20" not in expected or render in {render_json, render_html}, "times stand apart"


@pytest.mark.parametrize("render", RENDERERS)
def test_no_rows_is_a_report_too(render: object) -> None:
    assert callable(render)
    assert render([])


def test_markdown_tells_the_whole_story() -> None:
    text = render_markdown(sample_rows())

    assert text.startswith("# LoRA on Mixture-of-Experts: compatibility\n\n**Needs a look.** 6 of 17 cells ok")
    row = next(
        line for line in text.splitlines() if "known error in reload-adapter" in line and line.startswith("| 5.6.2")
    )
    assert [part.strip() for part in row.strip("|").split("|")] == [
        "5.6.2", "0.19.1", "1.4.0", "`qwen3_moe`", "`lora`", "`reference`", "`cpu`", "156/156", "1.2e-13", "3/3",
        "0.23", "0.23", "△ known error in reload-adapter",
    ]  # fmt: skip
    assert f"```text\n{TYPE_ERROR}\n```" in text
    assert f"([more]({LINK}))" in text
    assert text.count(UNRECOGNISED) == 1, "cells with the same reason share an entry"
    for sample in sample_rows():
        assert (sample.result.cell.reproduce in text.splitlines()) == (not sample.passed)
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert titles == [
        "Overview", "Cells", "Regressions", "New failures", "Unexpected passes", "Not run", "Flaky", "Known failures",
        "Skipped", "Unsupported",
    ]  # fmt: skip


@given(HOSTILE)
def test_markdown_code_holds_whatever_is_put_into_it(text: str) -> None:
    parse = MarkdownIt("commonmark").parse

    block = parse(code_block(text) + "\n\nafter")
    span = parse(f"before {code_span(text)} after")

    assert [token.type for token in block] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    children = [token.type for token in span[1].children or []]
    assert children in (["text", "code_inline", "text"], ["text"])


@settings(max_examples=25)
@given(HOSTILE)
def test_markdown_from_hostile_results_has_our_headings_links_and_columns_only(text: str) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(render_markdown([hostile_row(text)]))
    inline = [child.type for token in tokens for child in token.children or []]

    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", "h2", "h2", "h2", "h3"]
    assert not {"html_inline", "image"} & set(inline)
    assert "html_block" not in {token.type for token in tokens}
    assert inline.count("link_open") == (web_link(hostile_row(text)) is not None)
    assert sum(token.type == "th_open" for token in tokens) == 13 + 3


def test_html_is_self_contained_and_names_what_may_run() -> None:
    page = render_html(sample_rows(), "2026-11-21")
    found = Page(page)
    attributes = [(tag, name) for tag, attrs in found.elements for name in attrs]

    assert not [pair for pair in attributes if pair[1] in {"src", "srcset", "style"} or pair[1].startswith("on")]
    assert [attrs["href"] for _, attrs in found.elements if "href" in attrs] == ["#cells"]
    assert not re.search(r"url\(|@import", "".join(found.texts["style"]))
    policy = next(attrs["content"] for _, attrs in found.elements if "http-equiv" in attrs) or ""
    digest = base64.b64encode(hashlib.sha256(found.texts["script"][1].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "Generated 2026-11-21" in page
    assert "Generated" not in render_html(sample_rows())


def test_html_rows_carry_symbol_word_and_filters() -> None:
    found = Page(render_html(sample_rows()))
    bodies = [attrs for tag, attrs in found.elements if tag == "tbody" and str(attrs.get("class")).startswith("cell ")]

    assert len(bodies) == len(found.data()) == 17
    assert sum(body["class"] == "cell tone-pass" for body in bodies) == 3
    assert {body["data-status"] for body in bodies} == {
        "regression", "new", "unexpected-pass", "not-run", "flaky", "known-failure", "ok",
    }  # fmt: skip
    assert "✗" in found.texts["i"]
    assert "known error in reload-adapter" in found.texts["span"]


@settings(max_examples=50)
@given(HOSTILE)
def test_html_structure_does_not_depend_on_what_results_say(text: str) -> None:
    harmless, hostile = Page(render_html([hostile_row("x")], "x")), Page(render_html([hostile_row(text)], f"x{text}"))

    def shape(page: Page) -> list[str]:
        # The reason under the outcome is left out when it is empty.
        return [tag for tag, _ in page.elements if tag != "small"]

    assert shape(hostile) == shape(harmless)
    assert len(hostile.data()) == 1


def test_html_of_a_nasty_reason() -> None:
    page = render_html([hostile_row(NASTY)], NASTY)
    found = Page(page)

    assert page.count("<script") == 2
    assert "<img" not in page
    assert "\x1b" not in page
    assert "49" not in "".join(found.texts["small"]), "a template in a reason is text"
    assert str(found.data()[0]["reason"]).startswith("</script><script>alert(1)</script><img src=x onerror=alert(1)> |")
    assert found.data()[0]["link"] is None


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("https://example.org/a?b=1#c", True),
        ("HTTP://example.org", True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        (" https://example.org", False),
        ("https://example.org/\nx", False),
        ("https://example.org/\u202ex", False),
        (None, False),
    ],
)
def test_only_web_links_become_links(link: str | None, *, shown: bool) -> None:
    row = Row(result=measured(cell("qwen3_moe")), status="ok", expectation_link=link)

    assert web_link(row) == (link if shown else None)


def test_details_put_failed_checks_first_and_leave_nothing_empty() -> None:
    row = next(row for row in sample_rows() if row.result.outcome == "fail")
    found = {section.title: section for section in sections(row)}

    assert [line.cells[:4] for line in found["Checks"].lines] == [
        ("kl", "compare", "0.55", "<= 1e-09"),
        ("applied", "compare", "140", "== 148"),
    ]
    assert all(line.bad for line in found["Checks"].lines)
    assert found["Merged tensors, measured from the bytes"].lines[0].cells == ("all", "156", "140", "5", "3", "6", "2")
    assert ("loss on one fixed batch", "5.41 → 4.02") in [line.cells for line in found["Training"].lines]
    stages = {line.cells[0]: line.cells[1:3] for line in found["Stages"].lines}
    assert (stages["compare"], stages["merge"]) == (("✗ fail", "1.2 s"), ("✓ pass", "0.5 s"))
    assert all(any(line.cells[i] for line in s.lines) for s in found.values() for i in range(len(s.head)))


def test_json_is_sorted_ascii_and_reads_back_as_results() -> None:
    text = render_json(sample_rows())
    report = json.loads(text)
    again = json.dumps(report, sort_keys=True, indent=1) + "\n"

    assert text == again
    assert text.isascii()
    assert report["schema_version"] == 1
    assert report["summary"]["standings"]["known-failure"] == 2
    assert report["summary"]["green"] is False
    assert len(report["started"]) == 15
    assert "2026-11-20" not in json.dumps(report["rows"])
    by_cell = {row["cell"]: row for row in report["rows"]}
    for row in sample_rows():
        found = by_cell[row.result.cell_id]
        assert CellResult.model_validate(found["result"]) == row.result.model_copy(update={"started": None})
        assert found["status"] == row.status
    assert by_cell["glm4_moe/lora@tf4.57.6-peft0.19.1-trl0.25.1"]["standing"] == "not-run"


def test_json_keeps_a_kl_that_is_not_a_number() -> None:
    result = measured(cell("qwen3_moe"), outcome="fail", stage="compare")
    result.metrics = Metrics(kl_trained_merged=math.nan, max_logprob_diff=math.inf)
    found = json.loads(render_json([Row(result=result, status="regression")]))["rows"][0]["result"]

    assert found["metrics"]["kl_trained_merged"] == "NaN"
    assert math.isnan(CellResult.model_validate(found).metrics.kl_trained_merged or 0.0)
    assert CellResult.model_validate(found).metrics.max_logprob_diff == math.inf


def test_a_regression_without_a_reason_is_explained_by_its_verdict() -> None:
    """The outcome can be a pass although a stage is missing: then the verdict's sentence is all there is."""
    sentence = "controls was not run, although all it needs passed"
    row = Row(result=measured(cell("qwen3_moe")), status="regression", sentence=sentence)
    console = _console(100, terminal=False)
    print_failure(console, row, "", None)

    assert "### ✗ regression: `qwen3_moe/lora@" in render_markdown([row])
    assert f"`{sentence}`" in render_markdown([row])
    assert sentence in Page(render_html([row])).texts["small"]
    assert f"  verdict   {sentence}" in _written(console).splitlines()


def test_a_verdict_that_repeats_the_reason_is_not_shown_twice() -> None:
    crashed = stopped(cell("qwen3_moe"), "crash", "train", "killed by SIGSEGV")
    row = Row(result=crashed, status="regression", sentence="train ended in crash: killed by SIGSEGV")

    assert render_markdown([row]).count("killed by SIGSEGV") == 1


def test_junit_says_each_fate_in_its_own_words() -> None:
    root = ET.fromstring(render_junit(sample_rows()))  # noqa: S314 - our own bytes
    fates = {
        (suite.get("name"), case.get("name")): (case[0].tag, case[0].get("type")) if len(case) else "passed"
        for suite in root
        for case in suite.iter("testcase")
    }
    assert {said.get("value") for said in root.iter("property")} == {last_run()}, (
        "each suite says what checks are worth"
    )
    old, new, main, broken = (
        "tf4.57.6-peft0.19.1-trl0.25.1",
        "tf5.23.0-peft0.21.2-trl1.16.0",
        "tf5.5.0-peft0.19.1-trl0.25.1",
        "tf5.6.2-peft0.19.1-trl1.4.0",
    )

    assert fates == {
        (new, "deepseek_v3/lora by reference"): ("error", "regression.crash"),
        (new, "glm4_moe/lora by reference"): "passed",
        (broken, "deepseek_v3/lora by reference"): ("skipped", "flaky"),
        (broken, "glm4_moe/lora by reference"): ("failure", "unexpected-pass"),
        (broken, "qwen3_moe/lora by reference"): ("skipped", "known-failure"),
        (main, "deepseek_v3/lora by reference"): ("failure", "new.blind"),
        (main, "glm4_moe/lora by reference"): ("failure", "new.noop"),
        (main, "qwen3_5_moe/lora by reference"): ("error", "new.timeout"),
        (main, "qwen3_moe/lora by reference"): "passed",
        (main, "qwen3_moe/lora +seed=3 by reference"): ("failure", "new.fail"),
        (main, "qwen3_moe/lora-experts +dtype=bf16+geometry=square-down by reference"): "passed",
        (main, "qwen3_moe/qlora8 by reference"): ("skipped", "skipped"),
        (old, "deepseek_v3/lora by reference"): ("error", "not-run"),
        (old, "glm4_moe/lora by reference"): ("error", "not-run"),
        (old, "qwen3_5_moe/lora by reference"): ("skipped", "unsupported"),
        (old, "qwen3_5_moe/lora-experts by reference"): ("skipped", "unsupported"),
        (old, "qwen3_moe/qlora4 by reference"): ("skipped", "known-failure"),
    }
    assert [int(suite.get("tests", "")) for suite in root] == [2, 3, 7, 5]


@settings(max_examples=50)
@given(HOSTILE)
def test_junit_from_hostile_results_is_one_failed_case(text: str) -> None:
    root = ET.fromstring(render_junit([hostile_row(text)]))  # noqa: S314 - our own bytes

    tags = [element.tag for element in root.iter() if not element.tag.startswith("propert")]
    assert tags == ["testsuites", "testsuite", "testcase", "failure"]
    assert ("".join(failure.text or "" for failure in root.iter("failure"))).endswith("--geometry distinct")


def _console(width: int, *, terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, highlight=False)


def _written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_ci_log_gets_whole_lines() -> None:
    console = _console(80, terminal=False)
    print_table(console, sample_rows())
    lines = [" ".join(line.split()) for line in _written(console).splitlines()]

    assert (
        "5.6.2 0.19.1 1.4.0 qwen3_moe lora reference cpu 156/156 1.2e-13 3/3 0.23 0.23 △ known error in reload-adapter"
        in lines
    )
    assert lines[-1].startswith("Needs a look. 6 of 17 cells ok")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_terminal_of_any_width_shows_every_number_unbroken(width: int) -> None:
    console = _console(width, terminal=True)
    print_table(console, sample_rows())

    assert _written(console).count("1.2e-13") == 6
    assert "140/156" in _written(console)


@pytest.mark.parametrize(
    ("outcome", "status", "kind", "said"),
    [
        ("environment", "environment", "environment", "⚙ environment"),
        ("skipped", "environment", "environment", "⚙ environment"),
        ("unresolvable", "unresolvable", "unresolvable", "∦ unresolvable"),
        ("unsupported", "unsupported", "unsupported", "∅ unsupported, undeclared"),
        ("error", "new", "new.error", "✗ error"),
        ("error", "regression", "regression.error", "✗ regression: error"),
    ],
)
def test_every_format_says_whose_fault_it_is(outcome: Outcome, status: Status, kind: str, said: str) -> None:
    row = Row(result=stopped(cell("qwen3_moe"), outcome, "load", "why"), status=status)
    case = next(ET.fromstring(render_junit([row])).iter("testcase"))  # noqa: S314 - our own bytes
    table = json.loads(render_json([row]))["rows"][0]

    assert (case[0].tag, case[0].get("type")) == ("error", kind)
    assert (table["standing"], row.as_expected) == (status, False)
    assert said in render_markdown([row])
    assert said.partition(" ")[2] in render_html([row])
    console = _console(200, terminal=False)
    print_table(console, [row])
    assert said in _written(console)


def test_a_failure_is_told_with_its_log_and_the_line_that_reproduces_it() -> None:
    row = next(row for row in sample_rows() if row.result.outcome == "fail")
    console = _console(60, terminal=False)
    print_failure(
        console, row, "step 1\n\x1b[31mboom\x1b[0m [red]x[/red] :smile:\n", Path("out/cells/qwen3_moe/a b.log")
    )

    assert _written(console).splitlines() == [
        "✗ fail  qwen3_moe/lora@tf5.5.0-peft0.19.1-trl0.25.1+seed=3",
        "  phase     compare",
        "  check     kl: 0.55, must be <= 1e-09",
        "  check     applied: 140, must be == 148 (layers.1.mlp.experts.3.up_proj)",
        "  reason    2 of 156 tensors are wrong, 6 were dropped",
        "  log       up to the end of compare",
        "    │ step 1",
        "    │ boom [red]x[/red] :smile:",
        "  log at    out/cells/qwen3_moe/a b.log",
        f"  reproduce {row.result.cell.reproduce}",
        "",
    ]


def test_a_failure_is_told_once() -> None:
    """The reason of a stage that its checks failed is made of them."""
    row = next(row for row in sample_rows() if row.result.outcome == "fail")
    again = row.result.model_copy(update={"reason": "kl is 0.55, the band is <= 1e-09; applied is 140, …"})
    row = dataclasses.replace(row, result=again)
    console = _console(60, terminal=False)
    print_failure(console, row, "check kl: FAILED", Path("a.log"))

    assert _written(console).count("1e-09") == 1
    assert "FAILED" not in _written(console)
    assert "log at    a.log" in _written(console)
    assert render_markdown([row]).count("1e-09") == 1


def test_what_a_stack_has_not_is_one_sentence_without_a_log() -> None:
    result = stopped(cell("llama"), "unsupported", "build", "LlamaForCausalLM has no routed experts")
    console = _console(60, terminal=False)
    print_failure(console, Row(result=result, status="unsupported"), "=== stage build\nTraceback", Path("a.log"))

    assert "reason    LlamaForCausalLM has no routed experts" in _written(console)
    assert "Traceback" not in _written(console)
    assert "log at    a.log" in _written(console)


@settings(max_examples=50)
@given(HOSTILE)
def test_a_terminal_obeys_nothing_that_results_say(text: str) -> None:
    console = _console(100, terminal=False)
    print_failure(console, hostile_row(text), text, text)
    known = dataclasses.replace(hostile_row(text), status="known-failure")
    print_declared(console, [known, not_run(cell("glm4_moe", seed=9), text)])
    print_table(console, [known])
    print_table(console, [hostile_row(text)])

    assert not set(_written(console)) & {"\x1b", "\r", "\x07", "\x9b", "\u202e"}


def test_a_report_is_written_whole_and_replaces_the_last_one(tmp_path: Path) -> None:
    out = tmp_path / "made" / "here"
    paths = write_report(sample_rows(), out)
    before = {path.name: path.read_bytes() for path in paths}
    write_report(sample_rows()[::-1], out)

    files = [path.name for path in paths]
    assert files == ["report.md", *sorted(set(files) - {"report.md"})]
    assert {"junit.xml", "report.csv", "report.html", "report.json"} < set(files)
    assert len(files) == len(list((ROOT / "harness/report/formats").glob("[!_]*.py")))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before, (
        "the same bytes, and no temporary file left"
    )
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o644}


def test_rows_that_cannot_be_reported_leave_the_last_report_alone(tmp_path: Path) -> None:
    write_report(sample_rows(), tmp_path)
    before = (tmp_path / "report.md").read_bytes()
    twice = stopped(cell("qwen3_moe"), "crash", "train", "x")

    with pytest.raises(ValueError, match="two results"):
        write_report([Row(result=twice, status="regression")] * 2, tmp_path)
    assert (tmp_path / "report.md").read_bytes() == before


def test_the_line_that_reproduces_a_cell_names_the_configuration_it_was_judged_by(tmp_path: Path) -> None:
    config, expectations = tmp_path / "my matrix.toml", tmp_path / "known.toml"
    config.write_bytes((ROOT / "matrix.toml").read_bytes())
    expectations.write_bytes((ROOT / "expectations.toml").read_bytes())
    result = stopped(cell("glm4_moe"), "crash", "train", "killed by SIGSEGV")

    usual = judged(load_setup(), [result])[0]
    own = judged(load_setup(config, expectations), [result])[0]

    assert usual.reproduce == result.cell.reproduce
    assert own.reproduce == f"{result.cell.reproduce} --config '{config}' --expectations {expectations}"
    console = _console(200, terminal=False)
    print_failure(console, own, "", None)
    for text in (_written(console), render_markdown([own]), render_junit([own])):
        assert own.reproduce in text
    assert json.loads(render_json([own]))["rows"][0]["reproduce"] == own.reproduce


def test_a_known_failure_is_explained_once_however_many_cells_it_has() -> None:
    rows = sample_rows()
    known = next(row for row in rows if row.result.stage == "reload-adapter")
    twin = Row(
        result=known.result.model_copy(update={"cell_id": f"{known.result.cell_id}+seed=1"}),
        status="known-failure",
        expectation_reason=known.expectation_reason,
        expectation_link=known.expectation_link,
    )
    console = _console(60, terminal=False)
    print_declared(console, [*rows, twin])

    assert _written(console).splitlines() == [
        "△ known error in reload-adapter (2 cells), as declared: peft 0.19.1 passes an argument that 5.6.2 dropped",
        f"  {LINK}",
        "△ known unresolvable in resolve, as declared: no common version",
    ]


@pytest.mark.parametrize(
    ("status", "head"),
    [("known-failure", "A known failure, as declared: "), ("flaky", "A failure that comes and goes, as declared: ")],
)
def test_a_single_known_failure_begins_with_what_happened_and_why(status: Status, head: str) -> None:
    known = next(row for row in sample_rows() if row.result.stage == "reload-adapter")
    console = _console(60, terminal=False)
    row = dataclasses.replace(known, status=status)
    print_table(console, [row])
    print_declared(console, [row])
    below = _written(console).partition("in reload-adapter")[2].splitlines()[1:]

    assert f"{head}error in reload-adapter: peft 0.19.1 passes an argument that 5.6.2 dropped" in below
    assert below.count(f"  {LINK}") == 1
    assert "Nothing unexpected" not in _written(console)
    assert f"**{head.removesuffix(': ')}.**" in render_markdown([row])


def test_a_single_cell_that_is_unsupported_as_declared_says_so() -> None:
    row = next(row for row in sample_rows() if row.result.outcome == "unsupported")
    console = _console(60, terminal=False)
    print_table(console, [dataclasses.replace(row, expectation_reason="added in transformers 5.2")])

    assert "Unsupported, as declared: unsupported in load: added in transformers 5.2" in _written(console)


def test_nothing_is_declared_of_cells_that_are_not_known_to_fail() -> None:
    console = _console(60, terminal=False)
    print_declared(console, [row for row in sample_rows() if row.standing != "known-failure"])

    assert _written(console) == ""
