"""The rows and columns that every format shows; pure.

A row is a cell's result with what the expectations made of it. The columns are those of the field's own compatibility
tables. Their order, titles and texts are decided here once, so that a number reads the same on the terminal, in the
README and in a browser. Rows are sorted newest stack first, so that the order they were finished in leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from packaging.version import Version

from harness.contract.outcomes import AS_EXPECTED, HARMLESS, Status
from harness.matrix.cell import MAIN_PACKAGES, Cell
from harness.planted import planted_fault
from harness.report import figures
from harness.result import CellResult

Standing = Status | Literal["not-run", "fault-noticed", "fault-missed"]
STANDINGS: tuple[Standing, ...] = (
    "fault-missed", "planted", "regression", "new", "unexpected-pass", "unresolvable", "unsupported", "environment",
    "not-run", "fault-noticed", "flaky", "known-failure", "ok",
)  # fmt: skip
"""Worst first: what a person has to look at before anything else."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cell in a report.

    Attributes:
        result: what happened.
        status: what the expectations made of it; None for a cell that was planned and did not run.
        expectation_reason: why the declared expectation was declared, or None without one.
        expectation_link: where that is discussed; shown as a link only when it is http or https.
        sentence: the verdict in words, or None.
        options: what a command needs to find the configuration again that it was judged by, as ``--config ci.toml``.
            Empty for the usual one.

    Raises:
        ValueError: when the status is ``ok`` and the outcome is one that cannot be.
    """

    result: CellResult
    status: Status | None
    expectation_reason: str | None = None
    expectation_link: str | None = None
    sentence: str | None = None
    options: str = ""

    def __post_init__(self) -> None:
        if self.status == "ok" and self.result.outcome not in HARMLESS:
            raise ValueError(f"{self.result.cell_id}: outcome {self.result.outcome!r} cannot have the status 'ok'")

    @property
    def standing(self) -> Standing:
        """The status, or ``not-run``; of a cell with a planted fault, whether the gates noticed it and nothing else."""
        planted = planted_fault(self.result) if self.status == "planted" else None
        if planted is not None and planted.state == "missed":
            return "fault-missed"
        if planted is not None and planted.state == "noticed" and planted.alone:
            return "fault-noticed"
        return self.status or "not-run"

    @property
    def as_expected(self) -> bool:
        """True when nobody has to look at the cell: it ran, and nothing was a surprise."""
        return self.status in AS_EXPECTED

    @property
    def of_machine(self) -> bool:
        """True where the row says nothing of the stack: the machine's fault, or nothing was run."""
        return self.standing in {"environment", "not-run"}

    @property
    def reproduce(self) -> str:
        """The one command line that runs and judges exactly this cell."""
        return f"{self.result.cell.reproduce} {self.options}".rstrip()

    @property
    def passed(self) -> bool:
        """True only for a pass that was expected: the one thing that may look like a pass."""
        return self.standing == "ok" and self.result.outcome == "pass"


def not_run(cell: Cell, reason: str, *, options: str = "") -> Row:
    """Return the row of a planned cell that has no result, with the reason (``interrupted``, say)."""
    result = CellResult(cell=cell, cell_id=cell.id, outcome="skipped", reason=reason, seed=cell.seed)
    return Row(result=result, status=None, options=options)


def recipe_with_options(row: Row) -> str:
    """Return the recipe followed by whatever is not the default, as the cell's id has it: ``lora +dtype=bf16``.

    What merged is left out: it has a column of its own, where it is always said.
    """
    cell = row.result.cell
    options = cell.id.removeprefix(f"{cell.family}/{cell.recipe}@{cell.stack.id}").split("+")[1:]
    shown = "".join(f"+{option}" for option in options if not option.startswith("engine="))
    return f"{cell.recipe} {shown}".rstrip()


def stack_title(row: Row) -> str:
    """Return ``transformers / peft / trl`` versions, the name of a stack in tables."""
    stack = row.result.cell.stack
    return " / ".join(stack.shown(name) for name in MAIN_PACKAGES)


def merged_tensors(row: Row) -> str:
    """Return ``applied/attempted`` as measured from the bytes; tensors that rightly equal base are said apart."""
    merge = row.result.merge
    if merge is None:
        return figures.MISSING
    no_effect = merge.zero_delta + merge.below_rounding
    return f"{merge.applied}/{merge.attempted}" + (f" ({no_effect} without effect)" if no_effect else "")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: ``text`` is what a person reads, ``value`` what a machine sorts or computes with."""

    key: str
    title: str
    text: Callable[[Row], str]
    value: Callable[[Row], str | float | None]
    numeric: bool = False


def _text_column(key: str, title: str, text: Callable[[Row], str]) -> Column:
    return Column(key=key, title=title, text=text, value=text)


def _kl_column(metric: str, title: str) -> Column:
    def value(row: Row) -> float | None:
        found: float | None = getattr(row.result.metrics, metric)
        return found

    return Column(key=metric, title=title, text=lambda row: figures.kl(value(row)), value=value, numeric=True)


def _merged_share(row: Row) -> float | None:
    merge = row.result.merge
    return merge.applied / merge.attempted if merge is not None and merge.attempted else None


def _samples_share(row: Row) -> float | None:
    metrics = row.result.metrics
    if metrics.samples_matched is None or not metrics.samples_total:
        return None
    return metrics.samples_matched / metrics.samples_total


COLUMNS: tuple[Column, ...] = (
    _text_column("transformers", "transformers", lambda row: row.result.cell.stack.shown("transformers")),
    _text_column("peft", "peft", lambda row: row.result.cell.stack.shown("peft")),
    _text_column("trl", "trl", lambda row: row.result.cell.stack.shown("trl")),
    _text_column("family", "family", lambda row: row.result.cell.family),
    _text_column("recipe", "recipe", recipe_with_options),
    _text_column("engine", "merged by", lambda row: row.result.cell.engine),
    _text_column("device", "device", lambda row: row.result.device or row.result.cell.device),
    Column(key="merged", title="merged tensors", text=merged_tensors, value=_merged_share, numeric=True),
    _kl_column("kl_trained_merged", "trained vs merged KL"),
    Column(
        key="samples",
        title="samples",
        text=lambda row: figures.share(row.result.metrics.samples_matched, row.result.metrics.samples_total),
        value=_samples_share,
        numeric=True,
    ),
    _kl_column("kl_merged_base", "merged vs base KL"),
    _kl_column("kl_trained_base", "trained vs base KL"),
)
"""Every column but the last, ``outcome``, which each format draws in its own way from ``harness.report.look``."""


def stack_order(row: Row) -> tuple[Version, Version, Version]:
    """Return what stacks are sorted by (newest first wherever they are listed)."""
    stack = row.result.cell.stack
    return Version(stack.transformers), Version(stack.peft), Version(stack.trl)


def ordered(rows: Iterable[Row]) -> list[Row]:
    """Return the rows newest stack first, then by family, recipe and options.

    Raises:
        ValueError: when two rows are of the same cell. Which of them counts is not for a report to decide.
    """
    by_name = sorted(rows, key=lambda row: (row.result.cell.family, row.result.cell.recipe, row.result.cell_id))
    seen: set[str] = set()
    for row in by_name:
        if row.result.cell_id in seen:
            raise ValueError(f"two results for the cell {row.result.cell_id}")
        seen.add(row.result.cell_id)
    return sorted(by_name, key=stack_order, reverse=True)
