"""QLoRA cells as a table: what was quantised, what that cost, and what merging cost, apart; pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.report import figures, shims
from harness.report.table import Column, Row
from harness.report.text import one_line
from harness.result import CellResult, QuantizedKind

TITLE = "Quantised bases"
INTRODUCTION = (
    "Weights quantised while training, of routed experts and of Linears, the experts' bytes against 16 bits, "
    "and the dtype that the LoRA was trained in. "
    "The gap is KL(trained ‖ that base + adapter, unmerged), what quantisation costs; "
    "the merge error is KL(that base + adapter, unmerged ‖ merged). "
    "Bases: the original, and the one that the codes mean. "
    "Peak RSS is the largest process of the cell, libraries included: it says little of QLoRA; "
    "peaks of loading and of a step are measured by nox -s bench. With a shim it is not the stack as it is."
)
FOOTNOTE = (
    "QLoRA rows: trained is the quantised model and base is the quantised base, "
    "so trained vs merged KL and merged vs base KL hold what quantisation costs. "
    f"Samples, top-1 and log-probabilities are held against the original base + adapter, unmerged. See {TITLE}."
)


def _kind(result: CellResult, name: str) -> QuantizedKind | None:
    return result.quantization.kinds.get(name) if result.quantization is not None else None


def _count_column(kind: str, title: str) -> Column:
    def text(row: Row) -> str:
        found = _kind(row.result, kind)
        return figures.MISSING if found is None else f"{found.quantized:,}/{found.quantized + found.plain:,}"

    def value(row: Row) -> float | None:
        found = _kind(row.result, kind)
        total = 0 if found is None else found.quantized + found.plain
        return None if found is None or not total else found.quantized / total

    return Column(key=f"{kind}_quantized", title=title, text=text, value=value, numeric=True)


def _share(row: Row) -> float | None:
    """Return the bytes of the experts as a share of what they would take in 16 bits."""
    experts = _kind(row.result, "experts")
    return None if experts is None or not experts.bf16_bytes else experts.stored_bytes / experts.bf16_bytes


def _fixed(value: Callable[[Row], float | None], digits: int) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        found = value(row)
        return figures.MISSING if found is None else f"{found:.{digits}f}"

    return text


def _metric_column(metric: str, title: str) -> Column:
    def value(row: Row) -> float | None:
        found: float | None = getattr(row.result.metrics, metric)
        return found

    return Column(key=metric, title=title, text=lambda row: figures.number(value(row)), value=value, numeric=True)


def _lora_dtypes(row: Row) -> str | None:
    training = row.result.training
    return None if training is None else one_line(", ".join(sorted(training.lora_dtypes))) or None


def _shims(row: Row) -> str | None:
    return one_line(", ".join(row.result.shims), 1000) or None


def _peak(row: Row) -> float | None:
    return row.result.peak_rss_mb


COLUMNS: tuple[Column, ...] = (
    _count_column("experts", "experts"),
    Column(key="experts_of_16_bits", title="of 16 bits", text=_fixed(_share, 3), value=_share, numeric=True),
    _count_column("linears", "Linears"),
    Column(key="lora_dtypes", title="LoRA", text=lambda row: _lora_dtypes(row) or figures.MISSING, value=_lora_dtypes),
    _metric_column("kl_quantization_gap_original", "gap, original"),
    _metric_column("kl_reference_merged", "merge error, original"),
    _metric_column("kl_quantization_gap_dequantized", "gap, dequantised"),
    _metric_column("kl_dequantized_merged", "merge error, dequantised"),
    Column(key="peak_rss_mb", title="peak RSS, MiB", text=_fixed(_peak, 0), value=_peak, numeric=True),
    Column(key="shims", title="shims", text=lambda row: _shims(row) or "none", value=_shims),
)
"""As ``table.COLUMNS``: ``text`` for people, ``value`` for machines (what was quantised as a share in [0, 1])."""


def quantized(rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose base was quantised."""
    return [row for row in rows if row.result.quantization is not None]


def pairs(row: Row) -> list[tuple[str, str | float | None]]:
    """Return the table's line for one cell as names and values; nothing for a cell whose base was not quantised."""
    if row.result.quantization is None:
        return []
    return [*((column.title, column.text(row)) for column in COLUMNS), ("note", shims.note(row.result))]


def lines(row: Row) -> list[str]:
    """Return what was quantised in one cell, what that costs and what merging adds, in lines for a terminal.

    There is none for a cell without.
    """
    if row.result.quantization is None:
        return []
    metrics = row.result.metrics
    table = (
        ("original", metrics.kl_quantization_gap_original, metrics.kl_reference_merged),
        ("dequantised", metrics.kl_quantization_gap_dequantized, metrics.kl_dequantized_merged),
    )
    said = [TITLE, f"  quantised: {_counts(row)}"]
    if any(value is not None for _, *values in table for value in values):
        said.append(f"  {'base':<15}{'quantisation costs':>18}   {'merging adds':>12}     (KL)")
        said += [f"  {base:<15}{figures.number(gap):>18}   {figures.number(error):>12}" for base, gap, error in table]
    dtypes = _lora_dtypes(row)
    if dtypes not in {None, "float32"}:
        said.append(f"  LoRA trained in {dtypes}: its rounding is part of what quantisation costs here")
    return said


def _counts(row: Row) -> str:
    """Return ``experts 10 of 10 weights, 0.260 of their bytes in 16 bits; Linears 3 of 4``."""
    parts = []
    experts, linears = _kind(row.result, "experts"), _kind(row.result, "linears")
    if experts is not None:
        share = f", {_fixed(_share, 3)(row)} of their bytes in 16 bits" if experts.bf16_bytes else ""
        parts.append(f"experts {_of(experts)} weights{share}")
    if linears is not None:
        parts.append(f"Linears {_of(linears)}")
    return "; ".join(parts) or "nothing that is counted"


def _of(kind: QuantizedKind) -> str:
    return f"{kind.quantized:,} of {kind.quantized + kind.plain:,}"
