"""The command line: parse, call, exit code. One module per command; this one gathers them and turns errors into exits.

A user's mistake never ends in a traceback. A ``HarnessError`` is printed to standard error as what happened and what to
do, and its exit code is returned. An error that is not one of those is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from harness import __version__
from harness.cli.adapter import app as adapter_app
from harness.cli.audit import audit
from harness.cli.bench import bench
from harness.cli.doctor import doctor
from harness.cli.env import app as env_app
from harness.cli.faults import faults
from harness.cli.matrix import matrix
from harness.cli.merge import merge
from harness.cli.noise_floor import noise_floor
from harness.cli.plan import plan
from harness.cli.report import report
from harness.cli.run import run
from harness.errors import HarnessError

EPILOG = (
    "Exit codes: 0 all as expected · 1 a check failed · 2 usage or configuration · 3 nothing selected · "
    "4 an environment could not be made · 5 input refused · 6 the command after a merge failed · 130 interrupted."
)


class _Commands(TyperGroup):
    """The commands, whose errors about a value are in words that a user knows."""

    def invoke(self, ctx: Any) -> Any:  # typer does not export the class of it
        """Run a command; typer 0.29 hands on the words in which pydantic begins each error of a value."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    name="harness",
    cls=_Commands,
    help="Verify that LoRA / QLoRA fine-tunes of Mixture-of-Experts models survive training, merging and reloading, "
    "for any combination of transformers, peft and trl.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (run, matrix, plan, report, merge, audit, faults, bench, noise_floor, doctor):
    app.command(command.__name__.replace("_", "-"), epilog=EPILOG)(command)
app.add_typer(adapter_app, name="adapter")
app.add_typer(env_app, name="env")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"moe-lora-harness {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        app()
    except HarnessError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def print_error(error: HarnessError) -> None:
    """Write what happened and what to do to standard error."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"[bold red]error:[/] {escape(error.message)}")
    if error.remedy:
        console.print(f"[bold]what to do:[/] {escape(error.remedy)}")
