"""``harness bench``: the merge engine, the audit and the expert runtime, measured.

They are measured beside a copy, other mergers, ``cmp`` and transformers' own paths.
"""

from __future__ import annotations

import pkgutil
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from harness import bench as bench_package
from harness.bench.settings import GB, Settings
from harness.cli.folder_help import FolderHelp
from harness.envs import cache_dir
from harness.errors import ConfigurationError

OUT, QUICK_OUT = Path("reports/bench"), Path("results/bench")
QUICK_SIZE = GB // 8
QUICK_PAIRS = 3
CASES = sorted(found.name for found in pkgutil.iter_modules([str(Path(bench_package.__file__).parent / "cases")]))
"""Their names, which are those of files: to import them is what takes its time."""
SMALLEST = 0.02
"""GB: three layers of the smallest sizes with 128 experts."""


def bench(
    size: Annotated[
        list[float] | None,
        typer.Option(help="Size of a checkpoint in GB; the first takes part in every case. Default: 2 and 16."),
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Pairs at the first size, cold and warm each. Default: 20.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help=FolderHelp("Only this case. Default: all that need no GPU.", CASES, folder="harness/bench/cases")
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Where results.json and report.md go. Default: reports/bench; with --quick results/bench."
        ),
    ] = None,
    workdir: Annotated[
        Path | None, typer.Option("--workdir", help="Where checkpoints lie meanwhile. Default: in the cache directory.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run on a small checkpoint, a few minutes.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of the same settings.")
    ] = False,
    python: Annotated[
        Path | None, typer.Option("--python", help="An interpreter whose torch sees a GPU, for cases that need one.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the checkpoints there.")] = False,
) -> None:
    """Measure merge engine and audit beside `cp`, PEFT, unsloth-zoo and `cmp`, and QLoRA on fused experts beside
    transformers' own paths, on this machine.

    Needs torch and safetensors, forty minutes, some 40 GB of disk and a machine that does nothing else. A goal that is
    not reached is reported, and is no error: the exit code is 0.

    Example: [bold]harness bench --quick[/]
    """
    from harness.bench.run import run_bench  # numpy takes its time, and no other command needs it

    settings = _settings(size, pairs, quick=quick)
    screen = _Screen(Console(stderr=True, highlight=False))
    words = [word for value in size or [] for word in ("--size", f"{value:g}")]
    words += ["--pairs", str(pairs)] if pairs is not None else []
    words += [word for name in only or [] for word in ("--only", name)]
    words += ["--quick"] if quick else []
    command = shlex.join(["nox", "-s", "bench", *(["--", *words] if words else [])])
    with screen:
        written = run_bench(
            settings,
            only=only or (),
            out=out or (QUICK_OUT if quick else OUT),
            work=workdir or cache_dir(),
            command=command,
            resume=resume,
            keep=keep,
            python=python,
            screen=screen,
            log=screen.say,
        )
    typer.echo("written: " + ", ".join(map(str, written)))


def _settings(size: list[float] | None, pairs: int | None, *, quick: bool) -> Settings:
    """Return the settings that the options mean.

    Raises:
        ConfigurationError: a size that no checkpoint can have, or one that is given twice.
    """
    plain = Settings()
    if size is not None and (min(size) < SMALLEST or len(set(size)) < len(size)):
        raise ConfigurationError(
            f"--size: {', '.join(f'{value:g}' for value in size)} are not different sizes of at least {SMALLEST:g} GB.",
            remedy="Give each size once, as --size 2 --size 16.",
        )
    sizes = tuple(round(value * GB) for value in size) if size else ((QUICK_SIZE,) if quick else plain.sizes)
    count = pairs if pairs is not None else (QUICK_PAIRS if quick else plain.pairs)
    return Settings(
        sizes=sizes,
        pairs=count,
        large_pairs=min(count, plain.large_pairs),
        rounds=min(count, 1 if quick else plain.rounds),
        quick=quick,
    )


class _Screen:
    """A bar for the step that runs, and a line for each that is finished."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._console = console
        self._task: TaskID | None = None
        self._name = ""

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, step: str, units: int) -> None:
        """Show the bar of a step."""
        self._name = step
        self._task = self._progress.add_task(step, total=units)

    def tick(self) -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.advance(self._task)

    def end(self, *, taken_over: bool) -> None:
        """Replace the bar by a line."""
        if self._task is not None:
            elapsed = self._progress.tasks[-1].elapsed or 0.0
            self._progress.remove_task(self._task)
            self.say(f"{self._name}: " + ("from an earlier run" if taken_over else f"{elapsed:.0f} s"))

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, soft_wrap=True, markup=False)
