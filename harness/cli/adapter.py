"""``harness adapter``: what an adapter holds, and the same adapter in another layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.cli.engine import engine_command, run_engine
from harness.cli.setup import check_writable, console

PACKAGE = "harness.merge.adapter_tools"
SHOWN = 10

app = typer.Typer(help="Look at an adapter, or rewrite it in another layout.", no_args_is_help=True)

Layout = Literal["standard", "swapped"]
Packing = Literal["rank_major", "grouped_by_expert"]
LayoutOption = Annotated[
    Layout | None,
    typer.Option("--io-layout", help="Its io layout, where shapes and provenance leave it open."),
]
PackingOption = Annotated[
    Packing | None, typer.Option("--b-packing", help="How its lora_B is packed. Default: PEFT's, or what it says.")
]


@app.command()
def inspect(
    adapter: Annotated[Path, typer.Argument(help="Directory of the PEFT adapter.")],
    base: Annotated[Path | None, typer.Option("--base", help="Also say whether it fits this checkpoint.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the facts here.")] = None,
    io_layout: LayoutOption = None,
    b_packing: PackingOption = None,
) -> None:
    """Show what an adapter holds: kinds, ranks, scales, layouts and how each was decided, and deltas that are zero.

    Exits with 1 when --base is given and does not fit.

    Example: [bold]harness adapter inspect adapter --base base[/]
    """
    if json_file is not None:
        check_writable(json_file, "--json")
    screen = Console(stderr=True, highlight=False)
    arguments = ["inspect", str(adapter.absolute())]
    arguments += ["--base", str(base)] if base else []
    arguments += _settled(io_layout, b_packing)
    facts = run_engine(engine_command(PACKAGE, screen) + arguments, screen, "reading")
    if json_file is not None:
        json_file.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    _show(facts)
    raise typer.Exit(1 if facts["fits"] is False else 0)


@app.command()
def convert(
    adapter: Annotated[Path, typer.Argument(help="Directory of the PEFT adapter.")],
    out: Annotated[Path, typer.Option("--out", help="Directory to publish; it must not exist.")],
    to_io_layout: Annotated[
        Layout | None, typer.Option("--to-io-layout", help="swapped for PEFT up to 0.19.0, standard from 0.19.1 on.")
    ] = None,
    to_b_packing: Annotated[
        Packing | None, typer.Option("--to-b-packing", help="rank_major is PEFT's; grouped_by_expert older unsloth's.")
    ] = None,
    to_experts: Annotated[
        Literal["fused", "per-expert"] | None,
        typer.Option("--to-experts", help="fused for transformers 5, per-expert for transformers 4."),
    ] = None,
    io_layout: LayoutOption = None,
    b_packing: PackingOption = None,
) -> None:
    """Rewrite an adapter so that another release can use it; refuse where something would be lost.

    Tensors are rearranged, never recomputed. Converting back gives the same bytes. The output appears by one rename.

    Example: [bold]harness adapter convert adapter --out converted --to-io-layout standard[/]
    """
    screen = Console(stderr=True, highlight=False)
    arguments = ["convert", str(adapter.absolute()), "--out", str(out.absolute())]
    for option, value in (
        ("--to-io-layout", to_io_layout),
        ("--to-b-packing", to_b_packing),
        ("--to-experts", to_experts),
    ):
        arguments += [option, value] if value else []
    arguments += _settled(io_layout, b_packing)
    result = run_engine(engine_command(PACKAGE, screen) + arguments, screen, "converting")
    names = {"io_layout": "io layout", "b_packing": "B packing", "experts": "experts"}
    for key, name in names.items():
        before, after = result["from"][key], result["to"][key]
        if before or after:
            typer.echo(f"{name}: {before or 'none'}" + (f" -> {after or 'none'}" if before != after else ""))
    for note in result["notes"]:
        typer.echo(f"note: {note}")


def _settled(io_layout: str | None, b_packing: str | None) -> list[str]:
    return (["--io-layout", io_layout] if io_layout else []) + (["--b-packing", b_packing] if b_packing else [])


def _show(facts: dict[str, Any]) -> None:
    screen = console()
    table = Table(box=None, pad_edge=False)
    for column in ("kind", "modules", "layers", "rank", "scale"):
        table.add_column(column, no_wrap=True, justify="left" if column == "kind" else "right")
    for kind, entry in facts["by_kind"].items():
        ranks, scales = (", ".join(f"{value:g}" for value in entry[key]) for key in ("ranks", "scales"))
        table.add_row(kind, str(entry["modules"]), str(entry["layers"]), ranks, scales)
    if facts["by_kind"]:
        screen.print(table)
    count = f", {facts['num_experts']} in each layer" if facts["num_experts"] else ""
    screen.print(f"experts: {facts['experts']}{count}")
    for key, name in (("io_layout", "io layout"), ("b_packing", "B packing")):
        if facts[key]:
            screen.print(f"{name}: {facts[key]['value']} (by {facts[key]['by']})")
    if facts["undecided"]:
        screen.print(f"undecided: {escape(facts['undecided'])}", soft_wrap=True)
    screen.print(
        f"PEFT: {facts['peft_version'] or 'not recorded'}; trained on: {escape(str(facts['base_model']))}",
        soft_wrap=True,
    )
    stored = ", ".join(f"{count} {dtype}" for dtype, count in facts["dtypes"].items())
    screen.print(f"tensors: {facts['tensors']} ({stored}), {facts['parameters']} parameters")
    _show_lists(screen, facts)
    for note in facts["notes"]:
        screen.print(f"note: {escape(note)}", soft_wrap=True)
    if facts["fits"] is not None:
        covers = ", ".join(f"{kind} {count}" for kind, count in facts["covers"].items())
        told = f"fits the base: covers {covers}" if facts["fits"] else f"does not fit the base: {facts['misfit']}"
        screen.print(escape(told), soft_wrap=True, style="green" if facts["fits"] else "red")


def _show_lists(screen: Console, facts: dict[str, Any]) -> None:
    """Print what else the adapter holds, each kind in one line that names the first few."""
    for name, told in (
        ("features", facts["features"]),
        ("whole tensors", facts["whole_tensors"]),
        ("trained tokens", [f"{module} ({count})" for module, count in facts["trained_tokens"].items()]),
        ("zero deltas", facts["zero_deltas"]),
    ):
        if told:
            more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
            screen.print(f"{name}: {escape(', '.join(told[:SHOWN]))}{more}", soft_wrap=True)
