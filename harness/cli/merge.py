"""``harness merge``: the reference merge engine on real directories."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from harness.cli.engine import engine_command, run_engine
from harness.cli.merge_hook import hook_command, run_hook
from harness.cli.merge_screen import show_outcome
from harness.cli.setup import check_there, check_writable
from harness.errors import ConfigurationError
from harness.matrix.plan import parse_shard

DTYPES = {"float32": "float32", "bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16"}


def merge(
    base: Annotated[
        str,
        typer.Option(
            "--base", help="Directory of the base checkpoint (safetensors), or ORG/NAME@REVISION in the hub's cache."
        ),
    ],
    adapter: Annotated[list[str], typer.Option("--adapter", help="Directory of the PEFT adapter; several add up.")],
    out: Annotated[Path | None, typer.Option("--out", help="Directory to publish; its parents are made.")] = None,
    dtype: Annotated[
        Literal["float32", "bf16", "bfloat16", "fp16", "float16"] | None,
        typer.Option(help="Write changed tensors in this dtype. Default: each keeps its own."),
    ] = None,
    accumulate: Annotated[
        Literal["float32", "float64"],
        typer.Option(help="What base and deltas are summed in before they are rounded once."),
    ] = "float32",
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
        str | None,
        typer.Option(help="The format the base is expected in, as nf4 or fp8_block; another is refused."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where the arithmetic is done, as torch names it (cpu, cuda, cuda:1).")
    ] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Pieces worked on at once. Default: the cores, at most 16.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing checkpoint at --out, in one step.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with an unfinished merge to --out, verified by hash; keep what is finished if this one fails.",
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Write part I of N of the output, beside --out: one machine's share."),
    ] = None,
    assemble: Annotated[
        bool, typer.Option("--assemble", help="Check the parts beside --out and publish what they make.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, write nothing.")] = False,
    then: Annotated[
        str | None,
        typer.Option(
            metavar="CMD",
            help="Run this program once the output is published, without a shell; {out} in it is the output's path. "
            "Exits with 6 if it fails.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the engine's report (or the plan, row by row) here.")
    ] = None,
) -> None:
    """Merge a LoRA adapter into a checkpoint: streaming, float32 arithmetic rounded once, and all or nothing.

    Works on directories and never loads a model. Everything is checked before the first byte is written; the output
    appears by one rename, complete, or not at all. Needs torch: where the harness itself has none, it runs in a stack's
    environment.

    Example: [bold]harness merge --base base --adapter adapter --out merged[/]
    """
    if json_file is not None:
        check_writable(json_file, "--json")
    if shard is not None:
        parse_shard(shard)
    if then is not None and (shard or dry_run):
        raise ConfigurationError(
            "--then runs after publication, so it goes with neither --shard nor --dry-run.",
            remedy="Leave --then out, and give it to --assemble.",
        )
    if out is None and not dry_run:
        raise ConfigurationError(
            "--out is needed, unless --dry-run is given.", remedy="Say where the merge goes: --out merged."
        )
    hook = hook_command(then, out)
    check_there("base", base)
    for path in adapter:
        check_there("adapter", path)
    screen = Console(stderr=True, highlight=False)
    if os.path.lexists(Path(base) / "merge_manifest.json"):
        screen.print("note: the base is itself the output of a merge; its adapter stays in it, and this one is added.")
    arguments = ["--base", base]
    arguments += [word for path in adapter for word in ("--adapter", path)]
    arguments += [f"--weight={value}" for value in weight or []]
    values = {
        "--base-as": base_as,
        "--quantization": quantization,
        "--out": out,
        "--dtype": DTYPES[dtype] if dtype else None,
        "--accumulate": accumulate,
        "--b-packing": b_packing,
        "--io-layout": io_layout,
        "--device": device,
        "--threads": threads,
        "--shard": shard,
    }
    arguments += [f"{name}={value}" for name, value in values.items() if value is not None]
    flags = {"--overwrite": overwrite, "--resume": resume, "--assemble": assemble, "--dry-run": dry_run}
    arguments += [name for name, on in flags.items() if on]
    outcome = run_engine(engine_command("harness.merge", screen) + arguments, screen, "merging")
    show_outcome(outcome)
    if outcome["event"] == "report" and out is not None:
        typer.echo(f"published: {out.absolute()}")
    if json_file is not None:
        json_file.write_text(json.dumps(outcome, indent=1, sort_keys=True) + "\n")
    if hook is not None:
        run_hook(hook)
