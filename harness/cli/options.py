"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_OUT = Path("results")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="A matrix.toml. Default: ./matrix.toml, else the one shipped with the harness."),
]
ExpectationsOption = Annotated[
    Path | None, typer.Option("--expectations", help="An expectations.toml. Default: the one beside matrix.toml.")
]
PreOption = Annotated[bool, typer.Option("--pre", help="Let pre-releases count where versions are selected.")]
ResolutionOption = Annotated[
    str,
    typer.Option(
        "--resolution",
        metavar="pinned|fresh|era-DAYS",
        help="What is installed beside the three packages: the pins of matrix.toml; fresh: what an installation gives "
        "today; era-30: nothing uploaded later than 30 days after the newest of the three.",
    ),
]
OutOption = Annotated[Path, typer.Option("--out", help="Where results, logs and reports are written.")]
ProfileOption = Annotated[str, typer.Option("--profile", help="Which profile of matrix.toml.")]
SelectOption = Annotated[
    list[str] | None,
    typer.Option("--select", help="Only cells whose id matches this glob, as 'qwen3_moe/*@tf5.5*'. Can be repeated."),
]
StackOption = Annotated[
    list[str] | None,
    typer.Option("--stack", help="Only these stacks, as 'tf5.5.0-*'. Narrows --select. Can be repeated."),
]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Only the I-th of N parts that take about as long, to share a run."),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="cpu, cuda or auto: cuda where --python's torch sees a GPU, else cpu. "
        "cuda installs the CUDA build of torch.",
    ),
]
PythonOption = Annotated[
    Path | None,
    typer.Option(
        "--python", help="Run in this existing interpreter as it is, instead of an environment made for the stack."
    ),
]
KeepOption = Annotated[
    bool,
    typer.Option(
        "--keep",
        help="Keep each cell's work directory: base, adapter and merged checkpoint. Every cell runs, as with --fresh.",
    ),
]
FreshOption = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Run every cell, also those whose result an earlier run has kept. What they come to now is kept instead.",
    ),
]
FreshProcessesOption = Annotated[
    bool,
    typer.Option(
        "--fresh-processes",
        help="Start a new process for each cell, which imports the libraries again, instead of forking a warm worker. "
        "Results are not reused then.",
    ),
]
BaselineOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--baseline",
        help="What passed before: a report.json, results, or a directory of them. A cell that passed there and does "
        "not now is a regression; any other is new. Can be repeated.",
    ),
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        help="Cells at a time. Default: one per core; on a GPU, one per four; on a cluster, one per core or GPU of it.",
    ),
]
