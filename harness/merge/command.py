"""The engine as a process: options in, JSON lines out, exit code from the error's class.

One line per event on standard output: ``{"event": "progress", "done": …, "total": …}`` (bytes, about a hundred of them), then one of
``{"event": "plan", …}`` (with ``--dry-run``), ``{"event": "report", …}`` or ``{"event": "error", "class": …, "message": …, "remedy": …,
"exit_code": …}``. It is what runs a merge where the calling program has no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.merge import merge, plan_merge
from harness.merge.errors import UsageError
from harness.merge.layout import B_PACKINGS, IO_LAYOUTS
from harness.merge.process import Parser, progress, run, say
from harness.merge.records import DTYPE_NAMES


def _parser() -> Parser:
    parser = Parser(prog="harness.merge", description="Merge a LoRA adapter into a checkpoint.", allow_abbrev=False)
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


def _run(argv: Sequence[str] | None) -> int:
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
        say("plan", plan.to_json())
        return 0
    say("report", merge(plan, options.out, overwrite=options.overwrite, progress=progress()).to_json())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1, 2, 5 or 130."""
    return run(lambda: _run(argv))
