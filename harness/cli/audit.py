"""``harness audit``: what somebody's merged checkpoint holds of the adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.cli.engine import engine_command, run_engine
from harness.cli.setup import check_there, check_writable, console

VERDICTS = ("applied", "indistinguishable", "untouched", "partial", "scrambled", "wrong", "missing")
FAULTS = ("missing", "wrong", "scrambled", "partial", "untouched", "changed")
"""The worst first."""
SHOWN = 10


def audit(
    base: Annotated[
        str,
        typer.Option(
            "--base", help="Directory of the base checkpoint (safetensors), or ORG/NAME@REVISION in the hub's cache."
        ),
    ],
    adapter: Annotated[
        list[str], typer.Option("--adapter", help="Directory of the PEFT adapter; again for each further one.")
    ],
    merged: Annotated[str, typer.Option("--merged", help="Directory of the merged checkpoint, made by any engine.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the report here, with a row for every tensor.")
    ] = None,
    io_layout: Annotated[
        Literal["standard", "swapped"] | None,
        typer.Option(help="Which side of a fused parameter lora_A faces, where shapes and provenance leave it open."),
    ] = None,
    b_packing: Annotated[
        Literal["rank_major", "grouped_by_expert"] | None,
        typer.Option(help="How lora_B's flat axis is packed. Default: PEFT's, or what adapter_config.json says."),
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="Weight of each adapter, in the order of --adapter. Default: 1.")
    ] = None,
) -> None:
    """Say, tensor by tensor, what a merged checkpoint holds of an adapter: applied, dropped, scaled, scrambled
    or wrong.

    Works on directories and never loads a model. Experts may be stored fused or one by one in either checkpoint. Exits
    with 1 when a tensor is not what it should be or a file is missing.

    Example: [bold]harness audit --base base --adapter adapter --merged merged[/]
    """
    if json_file is not None:
        check_writable(json_file, "--json")
    for what, path in (("base", base), *(("adapter", path) for path in adapter), ("merged checkpoint", merged)):
        check_there(what, path)
    screen = Console(stderr=True, highlight=False)
    arguments = ["--base", base, "--merged", merged]
    arguments += [word for path in adapter for word in ("--adapter", path)]
    arguments += [f"--weight={value}" for value in weight or []]
    arguments += ["--io-layout", io_layout] if io_layout else []
    arguments += ["--b-packing", b_packing] if b_packing else []
    report = run_engine(engine_command("harness.merge.auditing", screen) + arguments, screen, "auditing")
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    _show(report)
    raise typer.Exit(0 if report["ok"] else 1)


def _show(report: dict[str, Any]) -> None:
    """Print the table by kind, the faults, and the sentence last, where it is seen."""
    screen = console()
    used = [name for name in VERDICTS if any(name in counts for counts in report["by_kind"].values())]
    table = Table(box=None, pad_edge=False)
    table.add_column("kind", no_wrap=True)
    for name in ("covered", *used):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, counts in report["by_kind"].items():
        table.add_row(kind, str(sum(counts.values())), *(str(counts.get(name, 0)) for name in used))
    screen.print(table)
    untargeted = report["untargeted"]
    screen.print(f"not covered: {untargeted.get('same', 0)} the same, {untargeted.get('changed', 0)} changed")
    for name in ("io_layout", "b_packing"):
        if report[name]:
            screen.print(f"{name}: {report[name]['value']} (by {report[name]['by']})")
    for heading, key in (
        ("missing file", "missing_files"),
        ("index", "index_problems"),
        ("config.json", "config_problems"),
        ("config.json", "config_changes"),
        ("stored otherwise", "equivalents"),
        ("dtype", "dtype_changes"),
        ("note", "notes"),
    ):
        for line in report[key]:
            screen.print(f"{heading}: {escape(line)}", soft_wrap=True)
    if report["unexpected_tensors"]:
        screen.print(f"tensors that the base does not have: {_some(report['unexpected_tensors'])}", soft_wrap=True)
    faults = [row for row in report["rows"] if row["verdict"] in FAULTS]
    faults.sort(key=lambda row: FAULTS.index(row["verdict"]))
    for row in faults[:SHOWN]:
        screen.print(
            f"  [bold]{row['verdict']}[/] {escape(row['key'])}: {escape(str(row.get('detail')))}", soft_wrap=True
        )
    if len(faults) > SHOWN:
        screen.print(f"  and {len(faults) - SHOWN} more; --json lists them all")
    screen.print(escape(report["sentence"]), soft_wrap=True, style="green" if report["ok"] else "red")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return escape(", ".join(names[:SHOWN])) + more
