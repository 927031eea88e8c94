"""The engine as a process: options in, JSON lines out, exit code from the error's class.

One line per event on standard output: ``{"event": "progress", "done": …, "total": …}`` (bytes, about a hundred of them)
or ``{"event": "note", "text": …}``, then one of ``{"event": "plan", …}`` (with ``--dry-run``), ``{"event": "part", …}``
(with ``--shard``), ``{"event": "report", …}`` or ``{"event": "error", "class": …, "message": …, "remedy": …,
"exit_code": …}``. It is what runs a merge where the calling program has no torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.merge import assemble, merge, merge_part, plan_merge
from harness.merge.adapter.layout import B_PACKINGS, IO_LAYOUTS
from harness.merge.adapter.trained_on import trained_elsewhere
from harness.merge.errors import UsageError
from harness.merge.plan.estimate import default_threads, estimate
from harness.merge.plan.merge_plan import DTYPE_NAMES
from harness.merge.process import Parser, progress, run, say
from harness.merge.run.dry_run import check_output


def _share(text: str) -> tuple[int, int]:
    """Return (part, parts) from ``I/N``."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form I/N, such as 1/4")
    return int(part), int(parts)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _parser() -> Parser:
    parser = Parser(prog="harness.merge", description="Merge a LoRA adapter into a checkpoint.", allow_abbrev=False)
    add = parser.add_argument
    add("--base", type=Path, required=True, help="directory of the base checkpoint, or ORG/NAME@REVISION in the cache")
    add("--adapter", type=Path, required=True, action="append", help="directory of the adapter (several add up)")
    add("--weight", type=float, action="append", help="weight of each adapter, in order")
    add("--base-as", choices=("original", "quantized"), help="which base the deltas are to go onto")
    add("--quantization", help="the format that the base is expected to be stored in")
    add("--out", type=Path, help="directory to publish at (not needed with --dry-run)")
    add("--dtype", choices=list(DTYPE_NAMES), help="write changed tensors as this dtype")
    add("--accumulate", choices=("float32", "float64"), default="float32", help="what base and deltas are summed in")
    add("--io-layout", choices=IO_LAYOUTS, help="which side of a fused parameter lora_A faces")
    add("--b-packing", choices=B_PACKINGS, help="how lora_B's flat axis is ordered")
    add("--device", default="cpu", help="where the arithmetic is done, as torch names it")
    add("--threads", type=_positive, help="pieces worked on at once (default: the cores of this process)")
    add("--overwrite", action="store_true", help="replace an existing checkpoint at --out")
    add(
        "--resume",
        action="store_true",
        help="go on with an unfinished merge, and keep what is finished if this one fails",
    )
    add("--shard", type=_share, metavar="I/N", help="write part I of N of the output, beside --out")
    add("--assemble", action="store_true", help="put the parts beside --out together")
    add("--dry-run", action="store_true", help="print the plan and write nothing")
    return parser


def _run(argv: Sequence[str] | None) -> int:
    options = _parser().parse_args(argv)
    if options.out is None and not options.dry_run:
        raise UsageError("--out is needed, unless --dry-run is given.")
    if options.assemble and (options.shard or options.resume or options.dry_run):
        raise UsageError(
            "--assemble goes with none of --shard, --resume and --dry-run.",
            "It checks every part before it publishes anything.",
        )
    if options.shard and options.out is None:
        raise UsageError("--shard needs --out, beside which the part is written.")
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
    for path in options.adapter:
        if other := trained_elsewhere(path, options.base):
            say("note", {"text": f"{path} was trained on {other}, which is not the base given here."})
    common: dict[str, Any] = {"overwrite": options.overwrite, "accumulate": options.accumulate, "progress": progress()}
    how: dict[str, Any] = {"resume": options.resume, "device": options.device, "threads": options.threads}
    if options.dry_run:
        expected = estimate(plan, options.threads or default_threads(), options.accumulate)
        place = None
        if options.out is not None:
            place = check_output(plan, options.out, overwrite=options.overwrite, part=options.shard)
        say("plan", {**plan.to_json(), "estimate": expected.to_json(), "output": place})
    elif options.assemble:
        say("report", assemble(plan, options.out, **common).to_json())
    elif options.shard:
        part, parts = options.shard
        say("part", merge_part(plan, options.out, part=part, parts=parts, **common, **how).to_json())
    else:
        say("report", merge(plan, options.out, **common, **how).to_json())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1, 2, 5 or 130."""
    return run(lambda: _run(argv))
