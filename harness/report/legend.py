"""The lines below the table of a terminal: what its columns and symbols mean, as far as they are there; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harness.report.figures import MISSING
from harness.report.look import look
from harness.report.table import COLUMNS, Row

SYMBOLS: Mapping[str, str] = {
    "✓": "right in every check",
    "∅": "the stack has no such family or feature",
    "»": "needs what this machine has not",
    "△": "fails as declared",
    "✗": "a failure that nobody declared",
    "∦": "versions contradict each other",
    "⚙": "this machine's fault",
    "◎": "planted and rejected, as it must be",
    "!": "declared to fail, and does not",
    "≈": "fails now and then, as declared",
    "?": "was not run",
}
"""In a few words what ``harness.report.look.LEGEND`` says in a sentence, in the same order."""
NUMBERS: Mapping[str, str] = {
    "merged": "merged tensors: hold base + delta, of those under a LoRA",
    "samples": "samples: greedy ones that agree",
    "kl_trained_merged": "KL in nats: near 0 from trained to merged",
    "kl_trained_base": "far from 0 to base",
}
"""By the keys of columns. What is not here explains itself, or is explained by the one beside it."""
DOCS = "docs/explanation/verdicts.md"


def legend(rows: Iterable[Row]) -> list[str]:
    """Return a line for the columns that have a number and one for the symbols, with the page that says more."""
    rows = list(rows)
    measured = {column.key for column in COLUMNS if any(column.text(row) != MISSING for row in rows)}
    numbers = [words for key, words in NUMBERS.items() if key in measured]
    seen = {look(row).symbol for row in rows}
    symbols = [f"{symbol} {words}" for symbol, words in SYMBOLS.items() if symbol in seen]
    lines = [" · ".join(numbers), " · ".join(symbols)]
    told = [line for line in lines if line]
    return [*told[:-1], f"{told[-1]} ({DOCS})"] if told else []
