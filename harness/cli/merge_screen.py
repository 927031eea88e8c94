"""What a merge did, or would do, as a person reads it.

Counts, decisions, and for a plan one line for each sort of tensor.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Literal

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from harness.counting import counted

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
UNLIMITED = 1000
"""Columns that the table may take where the output is no terminal: lines that wrap cannot be searched."""

# The last column is flush right, so that no line ends in blanks.
_COLUMNS: dict[str, Literal["left", "right"]] = {
    "tensors": "left",
    "number": "right",
    "stored as": "left",
    "from the adapter's": "left",
    "rank": "right",
    "scale": "right",
}


def show_outcome(outcome: dict[str, Any]) -> None:
    """Print a report, a part's report or a plan: the last event of the engine."""
    if outcome.get("resumed"):
        typer.echo(_resumed(outcome["resumed"]))
    if outcome["event"] == "part":
        part, parts = outcome["part"], outcome["parts"]
        typer.echo(
            f"part {part} of {parts}: {counted(len(outcome['shards']), 'shard')}, "
            f"{decimal(outcome['bytes_written'])} written"
        )
        typer.echo("  when all parts are there, run the same command with --assemble instead of --shard")
        return
    if outcome["event"] == "report":
        _show_counts(outcome)
    else:
        _show_plan(outcome)
    for kind, entry in outcome["by_kind"].items():
        typer.echo(f"  {kind}: {entry if isinstance(entry, int) else '{applied}/{attempted}'.format(**entry)}")
    for name in ("io_layout", "b_packing"):
        if outcome.get(name):
            typer.echo(f"  {name}: {outcome[name]['value']} (by {outcome[name]['by']})")
    for note in outcome.get("notes", []):
        typer.echo(f"  note: {note}")


def _resumed(found: dict[str, int]) -> str:
    """Return what became of what an unfinished merge had left."""
    foreign = "what an earlier merge kept was of other inputs or options, and was removed" if found["foreign"] else ""
    if found["kept"] or found["rejected"] or not foreign:
        kept = f"{found['kept']} of {counted(found['shards'], 'shard')} verified by hash and kept"
        rejected = f"{found['rejected']} did not match, written again" if found["rejected"] else ""
        return "resumed: " + "; ".join(filter(None, (kept, rejected, foreign)))
    return f"nothing resumed: {foreign}"


def _show_counts(counts: dict[str, Any]) -> None:
    done = counts["applied"] + counts["zero_delta"] + counts["below_rounding"]
    typer.echo(
        f"applied {counts['applied']}/{counted(counts['attempted'], 'tensor')}, "
        f"{decimal(counts['bytes_written'])} written"
    )
    if done != counts["applied"]:
        typer.echo(
            f"  without effect: {counted(counts['zero_delta'], 'zero delta')}, "
            f"{counts['below_rounding']} below rounding"
        )


def _show_plan(plan: dict[str, Any]) -> None:
    expected = plan["estimate"]
    typer.echo(
        f"would change {plan['attempted']} of {counted(plan['tensors'], 'tensor')} in "
        f"{counted(plan['shards'], 'shard')}; nothing was written"
    )
    typer.echo(f"  {decimal(plan['bytes'])} to write, {decimal(plan['bytes_changed'])} of them in tensors that change")
    typer.echo(
        f"  about {decimal(expected['peak_memory_bytes'])} of memory on {expected['threads']} threads, and"
        f" {expected['seconds_at_1_gb_per_s']:g} s on a disk that takes 1 GB/s"
    )
    if place := plan["output"]:
        typer.echo(
            f"  {place['path']}: at least {decimal(place['needed_bytes'])} needed, {decimal(place['free_bytes'])} free"
        )
    width = None if Console().is_terminal else UNLIMITED
    Console(width=width, highlight=False).print(_table(plan))


def _table(plan: dict[str, Any]) -> Table:
    """Return one line for each sort of tensor: keys, adapter modules and shapes alike but for their numbers."""
    sorts: Counter[tuple[str, ...]] = Counter()
    for row in plan["rows"]:
        uses = [
            plan["uses"][number]
            for number in sorted({number for region in row["regions"] for number in _numbers(region)})
        ]
        ranks = sorted({use["rank"] for use in uses if use.get("rank")})
        sorts[
            _NUMBER.sub("*", row["key"]),
            f"{row['dtype']} {'x'.join(map(str, row['shape']))}",
            ", ".join(sorted({_NUMBER.sub("*", use["module"]) for use in uses})),
            ", ".join(map(str, ranks)) or "-",
            ", ".join(f"{scaling:g}" for scaling in sorted({use["scaling"] for use in uses})),
        ] += 1
    table = Table(box=None, pad_edge=False)
    for title, justify in _COLUMNS.items():
        table.add_column(title, justify=justify)
    for (key, stored, module, rank, scale), count in sorts.items():
        table.add_row(key, str(count), stored, module, rank, scale)
    return table


def _numbers(region: dict[str, Any]) -> list[int]:
    replaced = [] if region["replaced_by"] is None else [region["replaced_by"]]
    return replaced + [term["use"] for term in region["terms"]]
