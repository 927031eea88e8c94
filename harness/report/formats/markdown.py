"""The report as Markdown (GitHub's dialect), for a README, a commit and a job summary; pure.

First the sentence, then overview and table, then what is not a pass in the library's own words. Hostile text only ever
stands in code spans and in fenced blocks whose fence is longer than any run of backticks inside. There is no other
place in which a reason cannot become a heading, a link, an image or a notification to somebody's ``@name``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from harness.report import funnel, quantized, reuse
from harness.report.details import failed_checks, reason, told_by_checks, verdict, web_link
from harness.report.format import Format
from harness.report.last_run import last_run
from harness.report.look import LEGEND, TITLES, look, outcome_text, overview, severity
from harness.report.pipe_table import pipe_table
from harness.report.summary import summarise
from harness.report.table import COLUMNS, STANDINGS, Column, Row, ordered
from harness.report.text import clean, one_line

_NOT_PLANNED = "·"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def code_span(text: str) -> str:
    """Return ``text`` on one line as a code span that nothing in it can end, in a table or out of one."""
    text = one_line(text, 2000).replace("|", r"\|")
    if not text:
        return ""
    ticks = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def code_block(text: str, language: str = "text") -> str:
    """Return ``text``, cleaned, as a fenced block that nothing in it can end."""
    text = clean(text)
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _escaped_url(link: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-._~:/?#@!$&'*+,;=%") else _percent(c) for c in link)


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())


def _overview(rows: Sequence[Row]) -> str:
    table = overview(rows)
    lines = [
        (title, code_span(engine), *(_NOT_PLANNED if cell is None else str(cell) for cell in cells))
        for _, title, engine, cells in table.lines
    ]
    head = ("transformers / peft / trl", "merged by", *(code_span(family) for family in table.families))
    return pipe_table(head, lines)


def _table(rows: Sequence[Row]) -> str:
    as_code = {"family", "recipe", "engine", "device"}
    lines = [
        (
            *(code_span(column.text(row)) if column.key in as_code else column.text(row) for column in COLUMNS),
            outcome_text(row),
        )
        for row in rows
    ]
    head = (*(column.title for column in COLUMNS), "outcome")
    return pipe_table(head, lines, numeric=(column.numeric for column in COLUMNS))


def _footnote(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what the table's numbers mean in QLoRA rows, where there are any."""
    if quantized.quantized(rows):
        yield quantized.FOOTNOTE


def _quantized(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the section on QLoRA cells, where there are any."""
    chosen = quantized.quantized(rows)
    if not chosen:
        return
    yield f"## {quantized.TITLE}"
    yield quantized.INTRODUCTION
    head = ("cell", *(column.title for column in quantized.COLUMNS))
    lines = [
        (code_span(row.result.cell_id), *(_measured(column, row) for column in quantized.COLUMNS)) for row in chosen
    ]
    yield pipe_table(head, lines, numeric=(False, *(column.numeric for column in quantized.COLUMNS)))


def _funnel(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the section on cells in which not all that was asked for was merged, where there are any."""
    if not (chosen := funnel.losing(rows)):
        return
    yield f"## {funnel.TITLE}"
    yield funnel.INTRODUCTION
    lines = [
        (code_span(row.result.cell_id), code_span(cells[0]), *cells[1:])
        for row in chosen
        for cells, whole in funnel.lines(row.result)
        if not whole
    ]
    numeric = (False, False, *(True for _ in funnel.HEAD[1:]))
    yield pipe_table(("cell", *funnel.HEAD), lines, numeric=numeric)


def _reused(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the section on results of earlier runs, where there are any."""
    if chosen := reuse.reused(rows):
        yield f"## {reuse.TITLE}"
        yield reuse.INTRODUCTION
        yield pipe_table(reuse.HEAD, [(code_span(row.result.cell_id), *reuse.line(row.result)) for row in chosen])


def _measured(column: Column, row: Row) -> str:
    """Return a number, or what a result says in words as code."""
    text = column.text(row)
    return text if column.numeric or column.value(row) is None else code_span(text)


def _group_key(row: Row) -> tuple[object, ...]:
    """Return what makes two cells one entry: the same look, stage, words and expectation."""
    checks = tuple(failed_checks(row))
    return (outcome_text(row), verdict(row), reason(row), checks, row.expectation_reason, row.expectation_link)


def _entry(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the paragraphs of cells that share their fate."""
    first = rows[0]
    yield f"### {outcome_text(first)}: " + (
        code_span(first.result.cell_id) if len(rows) == 1 else f"{len(rows)} cells with the same reason"
    )
    if sentence := verdict(first):
        yield code_span(sentence)
    if checks := failed_checks(first):
        yield "\n".join(f"- {code_span(check)}" for check in checks)
    if (words := reason(first)) and not told_by_checks(first):
        yield code_block(words)
    if first.expectation_reason:
        link = web_link(first)
        more = f" ([more]({_escaped_url(link)}))" if link else ""
        yield f"Declared: {code_span(first.expectation_reason)}{more}"
    yield code_block("\n".join(row.reproduce for row in rows), "sh")


def _not_passes(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the sections on whatever is not a pass, worst first; unsupported and skipped cells come last."""
    for standing in STANDINGS:
        found = sorted((row for row in rows if row.standing == standing and not row.passed), key=severity)
        titles = [TITLES[standing]] if standing != "ok" else ["Skipped", "Unsupported"]
        for title in titles:
            chosen = [row for row in found if standing != "ok" or look(row).word == title.lower()]
            groups: dict[tuple[object, ...], list[Row]] = {}
            for row in chosen:
                groups.setdefault(_group_key(row), []).append(row)
            if groups:
                yield f"## {title}"
            for group in groups.values():
                yield from _entry(group)


def render_markdown(rows: Iterable[Row]) -> str:
    """Return the report as Markdown.

    Raises:
        ValueError: when two rows are of the same cell.
    """
    rows = ordered(rows)
    summary = summarise(rows)
    parts = ["# LoRA on Mixture-of-Experts: compatibility", f"**{summary.headline}.** {summary.sentence}"]
    if (said := reuse.sentence(rows)) is not None:
        parts.append(said)
    if (said := last_run()) is not None:
        parts.append(f"What these checks are worth: {said}.")
    if rows:
        shown = {str(look(row))[0] for row in rows}
        legend = "\n".join(f"- {symbol} {text}" for symbol, text in LEGEND if symbol in shown)
        parts += [
            "## Overview",
            "The worst of the recipes, per stack, engine and family, and how many of its cells pass.",
            _overview(rows),
            legend,
            "## Cells",
            "KL in nats, the mean over prompt positions. Merged tensors: applied/attempted, measured from the bytes.",
            _table(rows),
            *_footnote(rows),
            *_funnel(rows),
            *_quantized(rows),
            *_reused(rows),
            *_not_passes(rows),
        ]
    return "\n\n".join(parts) + "\n"


FORMAT = Format(
    file="report.md",
    serves="a job summary or a pull-request comment",
    render=lambda rows, _generated: render_markdown(rows),
)
