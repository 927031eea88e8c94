"""``harness merge``: the reference merge engine on real directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from harness.cli.engine import engine_command, run_engine
from harness.cli.setup import check_writable

DTYPES = {"float32": "float32", "bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16"}


def merge(
    base: Annotated[Path, typer.Option("--base", help="Directory of the base checkpoint (safetensors).")],
    adapter: Annotated[list[Path], typer.Option("--adapter", help="Directory of the PEFT adapter; several add up.")],
    out: Annotated[Path | None, typer.Option("--out", help="Directory to publish; its parents are made.")] = None,
    dtype: Annotated[
        Literal["float32", "bf16", "bfloat16", "fp16", "float16"] | None,
        typer.Option(help="Write changed tensors in this dtype. Default: each keeps its own."),
    ] = None,
    b_packing: Annotated[
        Literal["rank_major", "grouped_by_expert"] | None,
        typer.Option(help="How lora_B's flat axis is packed. Default: PEFT's, or what adapter_config.json says."),
    ] = None,
    io_layout: Annotated[
        Literal["standard", "swapped"] | None,
        typer.Option(help="Which side of a fused parameter lora_A faces, where shapes and provenance leave it open."),
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="Weight of each adapter, in the order of --adapter. Default: 1.")
    ] = None,
    base_as: Annotated[
        Literal["original", "quantized"] | None,
        typer.Option(help="Which base the deltas go onto; a base that is not stored so is refused."),
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(help="The format the base is expected in (nf4, fp4, int8, fp8_block, mxfp4).")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing checkpoint at --out, in one step.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, write nothing.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the engine's report (or plan) here.")
    ] = None,
) -> None:
    """Merge a LoRA adapter into a checkpoint: streaming, float32 arithmetic rounded once, and all or nothing.

    Works on directories and never loads a model. Everything is checked before the first byte is written; the output appears
    by one rename, complete, or not at all. Needs torch: where the harness itself has none, it runs in a stack's environment.

    Example: [bold]harness merge --base base --adapter adapter --out merged[/]
    """
    if json_file is not None:
        check_writable(json_file, "--json")
    screen = Console(stderr=True, highlight=False)
    if (base / "merge_manifest.json").exists():
        screen.print("note: the base is itself the output of a merge; its adapter stays in it, and this one is added.")
    arguments = ["--base", str(base.absolute())]
    arguments += [word for path in adapter for word in ("--adapter", str(path.absolute()))]
    arguments += [word for value in weight or [] for word in ("--weight", str(value))]
    arguments += ["--base-as", base_as] if base_as else []
    arguments += ["--quantization", quantization] if quantization else []
    arguments += ["--out", str(out.absolute())] if out else []
    arguments += ["--dtype", DTYPES[dtype]] if dtype else []
    arguments += ["--b-packing", b_packing] if b_packing else []
    arguments += ["--io-layout", io_layout] if io_layout else []
    arguments += ["--overwrite"] if overwrite else []
    arguments += ["--dry-run"] if dry_run else []
    outcome = run_engine(engine_command("harness.merge", screen) + arguments, screen, "merging")
    _show(outcome)
    if json_file is not None:
        json_file.write_text(json.dumps(outcome, indent=1, sort_keys=True) + "\n")


def _show(outcome: dict[str, Any]) -> None:
    """Print what was done, or would be, as a person reads it."""
    counts = outcome.get("summary", outcome)
    if outcome["event"] == "report":
        done = counts["applied"] + counts["zero_delta"] + counts["below_rounding"]
        typer.echo(
            f"applied {counts['applied']}/{counts['attempted']} tensors, {counts['bytes_written']} bytes written"
        )
        if done != counts["applied"]:
            typer.echo(
                f"  without effect: {counts['zero_delta']} zero deltas, {counts['below_rounding']} below rounding"
            )
    else:
        typer.echo(f"would apply {counts['attempted']} tensors; nothing was written")
    for kind, entry in counts["by_kind"].items():
        typer.echo(f"  {kind}: {entry if isinstance(entry, int) else '{applied}/{attempted}'.format(**entry)}")
    for name in ("io_layout", "b_packing"):
        if counts.get(name):
            typer.echo(f"  {name}: {counts[name]['value']} (by {counts[name]['by']})")
    for note in counts.get("notes", []):
        typer.echo(f"  note: {note}")
