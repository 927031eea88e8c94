"""The engine as a process: options in, JSON lines out, exit code from the error's class.

One line per event on standard output: ``{"event": "progress", "done": …, "total": …}`` (bytes, about a hundred of them), then one of
``{"event": "plan", …}`` (with ``--dry-run``), ``{"event": "report", …}`` or ``{"event": "error", "class": …, "message": …, "remedy": …,
"exit_code": …}``. It is what runs a merge where the calling program has no torch.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from harness.merge import merge, plan_merge
from harness.merge.errors import MergeError, UsageError
from harness.merge.layout import B_PACKINGS, IO_LAYOUTS
from harness.merge.records import DTYPE_NAMES

INTERRUPTED = 130
STEPS = 100


def _say(event: str, values: dict[str, object]) -> None:
    sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


def _progress() -> Callable[[int, int], None]:
    """Return a progress callback that prints only when another hundredth is done."""
    last = -1

    def show(done: int, total: int) -> None:
        nonlocal last
        step = done * STEPS // max(total, 1)
        if step != last:
            last = step
            _say("progress", {"done": done, "total": total})

    return show


class _Parser(argparse.ArgumentParser):
    """Reports a usage error as an event, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.format_usage().strip())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="harness.merge", description="Merge a LoRA adapter into a checkpoint.", allow_abbrev=False)
    parser.add_argument("--base", type=Path, required=True, help="directory of the base checkpoint")
    parser.add_argument(
        "--adapter", type=Path, required=True, action="append", help="directory of the adapter (several add up)"
    )
    parser.add_argument("--weight", type=float, action="append", help="weight of each adapter, in order")
    parser.add_argument("--base-as", choices=("original", "quantized"), help="which base the deltas are to go onto")
    parser.add_argument("--quantization", help="the format that the base is expected to be stored in")
    parser.add_argument("--out", type=Path, help="directory to publish at (not needed with --dry-run)")
    parser.add_argument("--dtype", choices=list(DTYPE_NAMES), help="write changed tensors as this dtype")
    parser.add_argument("--io-layout", choices=IO_LAYOUTS, help="which side of a fused parameter lora_A faces")
    parser.add_argument("--b-packing", choices=B_PACKINGS, help="how lora_B's flat axis is ordered")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing checkpoint at --out")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    options = _parser().parse_args(argv)
    if options.out is None and not options.dry_run:
        raise UsageError("--out is needed, unless --dry-run is given.")
    plan = plan_merge(
        options.base,
        options.adapter,
        weights=options.weight,
        io_layout=options.io_layout,
        b_packing=options.b_packing,
        dtype=options.dtype,
        base_as=options.base_as,
        quantization=options.quantization,
    )
    if options.dry_run:
        _say("plan", plan.to_json())
        return
    _say("report", merge(plan, options.out, overwrite=options.overwrite, progress=_progress()).to_json())


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1, 2, 5 or 130."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _run(argv)
    except MergeError as error:
        _say("error", error.to_json())
        return error.exit_code
    except KeyboardInterrupt:
        _say("error", {"class": "Interrupted", "message": "interrupted", "remedy": None, "exit_code": INTERRUPTED})
        return INTERRUPTED
    return 0
