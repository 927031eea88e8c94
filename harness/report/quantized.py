"""QLoRA cells as a table: what was quantised, what that cost, and what merging cost, apart; pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.report import figures
from harness.report.table import Row
from harness.result import CellResult, QuantizedKind

INTRODUCTION = (
    "Weights quantised while training, of routed experts and of Linears, and their bytes against 16 bits. The gap is KL(trained ‖ that base + adapter, "
    "unmerged), what quantisation costs; the merge error is KL(that base + adapter, unmerged ‖ merged). Bases: the original, and the one that the codes mean."
)
Column = tuple[str, Callable[[CellResult], str]]


def _kind(result: CellResult, name: str) -> QuantizedKind | None:
    kinds = result.quantization.kinds if result.quantization is not None else {}
    return next((kind for known, kind in kinds.items() if known == name), None)


def _quantized(name: str) -> Callable[[CellResult], str]:
    def text(result: CellResult) -> str:
        kind = _kind(result, name)
        return figures.MISSING if kind is None else f"{kind.quantized:,}/{kind.quantized + kind.plain:,}"

    return text


def _share(result: CellResult) -> str:
    kind = _kind(result, "experts")
    return figures.MISSING if kind is None or not kind.bf16_bytes else f"{kind.stored_bytes / kind.bf16_bytes:.3f}"


def _metric(name: str) -> Callable[[CellResult], str]:
    return lambda result: figures.number(getattr(result.metrics, name)) or figures.MISSING


COLUMNS: tuple[Column, ...] = (
    ("experts", _quantized("experts")),
    ("of 16 bits", _share),
    ("Linears", _quantized("linears")),
    ("gap, original", _metric("kl_quantization_gap_original")),
    ("merge error, original", _metric("kl_reference_merged")),
    ("gap, dequantised", _metric("kl_quantization_gap_dequantized")),
    ("merge error, dequantised", _metric("kl_dequantized_merged")),
    ("peak MiB", lambda result: figures.MISSING if result.peak_rss_mb is None else f"{result.peak_rss_mb:.0f}"),
    ("shims", lambda result: ", ".join(result.shims) or "none"),
)


def quantized(rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose base was quantised."""
    return [row for row in rows if row.result.quantization is not None]


def pairs(result: CellResult) -> list[tuple[str, str | float | None]]:
    """Return the table's line for one cell as names and values; nothing for a cell whose base was not quantised."""
    return [] if result.quantization is None else [(title, text(result)) for title, text in COLUMNS]


def sentence(result: CellResult) -> str | None:
    """Return what quantisation and merging cost in one cell, in a line; None for a cell that has no such figures."""
    metrics = result.metrics
    gap, error = metrics.kl_quantization_gap_original, metrics.kl_reference_merged
    if gap is None or error is None:
        return None
    values = [gap, error, metrics.kl_quantization_gap_dequantized, metrics.kl_dequantized_merged]
    original_gap, original_error, gap_decoded, error_decoded = map(figures.number, values)
    return (
        f"KL of quantisation {original_gap}, of the merge {original_error} (original base); "
        f"{gap_decoded} and {error_decoded} (the base that the codes mean)"
    )
