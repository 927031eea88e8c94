"""``harness noise-floor``: what a right merge measures like.

The bands in matrix.toml are derived from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from tabulate import tabulate

from harness.counting import counted
from harness.errors import NothingSelectedError
from harness.execution.loading import load_results
from harness.report.margins import Margin, margins
from harness.result import CellResult


def _share(result: CellResult) -> float | None:
    metrics = result.metrics
    return (
        None
        if metrics.samples_matched is None or not metrics.samples_total
        else metrics.samples_matched / metrics.samples_total
    )


def _gated_kl(result: CellResult) -> float | None:
    """The KL that ``kl_max`` is held against.

    It is from the trained model, or from the rounded reference of a narrower dtype.
    """
    metrics = result.metrics
    return metrics.kl_trained_merged if metrics.kl_reference_merged is None else metrics.kl_reference_merged


def _paths(result: CellResult) -> float | None:
    measured = (value for path in result.forward_paths.values() for value in (path.logits, path.gradients))
    return max((value for value in measured if value is not None), default=None)


def _definition(result: CellResult) -> float | None:
    """The largest difference from the architecture's definition that ``definition_max`` is held against."""
    checks = (check for check in result.checks if check.name == "definition" and check.stage != "compare")
    return max((check.value for check in checks if isinstance(check.value, float)), default=None)


QUANTITIES: tuple[tuple[str, str, Callable[[Iterable[float]], float], Callable[[CellResult], float | None]], ...] = (
    ("kl_max", "KL(trained or reference ‖ merged), largest", max, _gated_kl),
    (
        "adapter_reload_kl_max",
        "KL(trained ‖ reloaded adapter), largest",
        max,
        lambda result: result.metrics.kl_trained_adapter,
    ),
    ("logprob_max", "change of a log-probability, largest", max, lambda result: result.metrics.max_logprob_diff),
    ("samples_min", "share of samples matched, smallest", min, _share),
    ("exact_min", "share of exact elements, smallest", min, lambda result: result.metrics.tensors_exact_fraction),
    ("ulp_max", "ulps beyond accumulation, largest", max, lambda result: result.metrics.max_ulp),
    ("definition_max", "difference from the definition, largest", max, _definition),
    ("paths_max", "difference of two forward paths, largest", max, _paths),
    ("signal_min", "KL(trained ‖ base), smallest", min, lambda result: result.metrics.kl_trained_base),
)


HALVES = ("of even seeds", "of odd seeds")
"""A band that is set on the one half is checked on the other."""
SEEDS_FOR_HALVES = 10


def noise_floor(
    results: Annotated[list[Path], typer.Argument(help="Result files, or directories that hold them.")],
) -> None:
    """Print the worst value of every banded quantity over cells whose merged bytes are right.

    Each engine, dtype, geometry and device has a table of its own.

    A second table says of each check how far its worst clean value lies from its mildest control.

    The tables are Markdown. Whether the bytes are right is the tensor gate's word alone, so that a functional band is
    never derived from itself.

    Example: [bold]harness noise-floor results[/]
    """
    right = [result for result in load_results(results) if _bytes_are_right(result)]
    if not right:
        raise NothingSelectedError(
            "No result has merged bytes that are right, so there is no floor to print.",
            remedy="Give results of cells that merged: `harness matrix` makes them.",
        )
    groups = groupby(sorted(right, key=_group), key=_group)
    for (engine, dtype, geometry, device), members in groups:
        chosen = list(members)
        typer.echo(f"{engine}, {dtype}, {geometry} on {device}: {counted(len(chosen), 'cell')}\n")
        halves = HALVES if len({result.seed for result in chosen}) >= SEEDS_FOR_HALVES else ()
        headers = ("band", "quantity", "floor", *halves, "in cell")
        typer.echo(tabulate(_floor(chosen, halves=bool(halves)), headers=headers, tablefmt="pipe") + "\n")
        rows = [
            (it.name, it.stage, str(len(it.clean)), f"{it.worst:.3g}", it.limit, _mildest(it)) for it in margins(chosen)
        ]
        headers = ("check", "stage", "cells", "worst clean value", "band", "mildest control")
        typer.echo(tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True) + "\n")


def _mildest(margin: Margin) -> str:
    return "" if margin.mildest is None else f"{margin.mildest:.3g}"


def _floor(results: list[CellResult], *, halves: bool) -> list[tuple[str, ...]]:
    """Return a line per banded quantity: its worst value, on request that of each half, and the cell of the worst."""
    lines = []
    for band, words, worst, value in QUANTITIES:
        measured = {result.cell_id: found for result in results if (found := value(result)) is not None}
        if measured:
            floor = worst(measured.values())
            cell = next(cell for cell, found in measured.items() if found == floor)
            parts = [_of_half(results, half, worst, value) for half in (0, 1)] if halves else []
            lines.append((band, words, f"{floor:.5g}", *parts, f"`{cell}`"))
    return lines


def _of_half(
    results: list[CellResult],
    half: int,
    worst: Callable[[Iterable[float]], float],
    value: Callable[[CellResult], float | None],
) -> str:
    """Return the worst value of the runs with even seeds (0) or odd ones (1)."""
    found = [it for result in results if result.seed % 2 == half and (it := value(result)) is not None]
    return f"{worst(found):.5g}" if found else ""


def _group(result: CellResult) -> tuple[str, str, str, str]:
    """Floors depend on who merges, on the dtype that is stored, on the sizes and on the device that computes."""
    return result.cell.engine, result.cell.dtype, result.cell.geometry, result.cell.device


def _bytes_are_right(result: CellResult) -> bool:
    merge = result.merge
    if merge is None or result.cell.fault is not None:
        return False
    return merge.attempted > 0 and merge.dropped == merge.wrong == 0
