"""``harness merge``: the reference merge engine on real directories."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from harness.cli.setup import check_writable, load_setup
from harness.envs import cache_dir, ensure_environment
from harness.errors import HarnessError
from harness.execution.bundle import publish_bundle

DTYPES = {"float32": "float32", "bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16"}


class MergeFailedError(HarnessError):
    """The engine refused or failed; its own message, remedy and exit code."""

    def __init__(self, message: str, remedy: str | None, exit_code: int) -> None:
        super().__init__(message, remedy=remedy)
        self.exit_code = exit_code


def merge(
    base: Annotated[Path, typer.Option("--base", help="Directory of the base checkpoint (safetensors).")],
    adapter: Annotated[Path, typer.Option("--adapter", help="Directory of the PEFT adapter.")],
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
    arguments = ["--base", str(base.absolute()), "--adapter", str(adapter.absolute())]
    arguments += ["--out", str(out.absolute())] if out else []
    arguments += ["--dtype", DTYPES[dtype]] if dtype else []
    arguments += ["--b-packing", b_packing] if b_packing else []
    arguments += ["--io-layout", io_layout] if io_layout else []
    arguments += ["--overwrite"] if overwrite else []
    arguments += ["--dry-run"] if dry_run else []
    outcome = _engine(_command(screen) + arguments, screen)
    _show(outcome)
    if json_file is not None:
        json_file.write_text(json.dumps(outcome, indent=1, sort_keys=True) + "\n")


def _command(screen: Console) -> list[str]:
    """Return how the engine is started: here when torch is here, else in the environment of the first declared stack."""
    bundle = publish_bundle(cache_dir())
    program = str(bundle.root / "harness" / "merge" / "__main__.py")
    if importlib.util.find_spec("torch") is not None and importlib.util.find_spec("safetensors") is not None:
        import sys

        return [sys.executable, "-P", "-u", program]
    stack = load_setup().config.declared[0]
    screen.print(f"no torch here: merging in the environment of {stack.id}", soft_wrap=True)
    return [str(ensure_environment(stack).python), "-I", "-u", program]


def _engine(command: list[str], screen: Console) -> dict[str, Any]:
    """Run the engine's process, show its progress, and return its last event.

    Raises:
        MergeFailedError: it refused, failed or died.
    """
    last: dict[str, Any] = {}
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress,
        subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process,
    ):
        task = progress.add_task("merging", total=None)
        assert process.stdout is not None  # noqa: S101 — Popen was asked for a pipe
        try:
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "progress":
                    progress.update(task, completed=event["done"], total=event["total"])
                else:
                    last = event
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if last.get("event") == "error":
        raise MergeFailedError(last["message"], last["remedy"], last["exit_code"])
    if process.returncode != 0 or not last:
        raise MergeFailedError(
            f"the engine's process ended with code {process.returncode}; nothing was published.", None, 1
        )
    return last


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
