"""Inspection and conversion as a process; see ``harness.merge.process`` for its lines.

Results are ``{"event": "adapter", …}`` and ``{"event": "converted", …}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.merge.adapter.layout import B_PACKINGS, IO_LAYOUTS
from harness.merge.adapter_tools.convert import convert_adapter
from harness.merge.adapter_tools.inspection import inspect_adapter
from harness.merge.process import Parser, run, say


def _parser() -> Parser:
    parser = Parser(
        prog="harness.merge.adapter_tools", description="Look at or convert an adapter.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", allow_abbrev=False)
    inspect.add_argument("--base", type=Path, help="a checkpoint to try it on")
    convert = commands.add_parser("convert", allow_abbrev=False)
    convert.add_argument("--out", type=Path, required=True, help="directory to publish")
    convert.add_argument("--to-io-layout", choices=IO_LAYOUTS)
    convert.add_argument("--to-b-packing", choices=B_PACKINGS)
    convert.add_argument("--to-experts", choices=("fused", "per-expert"))
    for command in (inspect, convert):
        command.add_argument("adapter", type=Path, help="directory of the adapter")
        command.add_argument("--io-layout", choices=IO_LAYOUTS)
        command.add_argument("--b-packing", choices=B_PACKINGS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 (the base does not fit), 2, 5 or 130."""

    def program() -> int:
        options = _parser().parse_args(argv)
        settled = {"io_layout": options.io_layout, "b_packing": options.b_packing}
        if options.command == "inspect":
            facts = inspect_adapter(options.adapter, base=options.base, **settled)
            say("adapter", facts.to_json())
            return 1 if facts.fits is False else 0
        result = convert_adapter(
            options.adapter,
            options.out,
            to_io_layout=options.to_io_layout,
            to_b_packing=options.to_b_packing,
            to_experts=options.to_experts,
            **settled,
        )
        say("converted", result)
        return 0

    return run(program)
