"""The audit as a process; see ``harness.merge.process`` for its lines.

Its result is ``{"event": "audit", …}`` with the report's JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.merge import audit
from harness.merge.adapter.layout import B_PACKINGS, IO_LAYOUTS
from harness.merge.process import Parser, progress, run, say


def _parser() -> Parser:
    parser = Parser(prog="harness.merge.auditing", description="Audit a merged checkpoint.", allow_abbrev=False)
    parser.add_argument("--base", type=Path, required=True, help="directory of the base checkpoint")
    parser.add_argument("--adapter", type=Path, required=True, action="append", help="directory of an adapter")
    parser.add_argument("--weight", type=float, action="append", help="weight of each adapter, in order")
    parser.add_argument("--merged", type=Path, required=True, help="directory of the merged checkpoint")
    parser.add_argument("--io-layout", choices=IO_LAYOUTS, help="which side of a fused parameter lora_A faces")
    parser.add_argument("--b-packing", choices=B_PACKINGS, help="how lora_B's flat axis is ordered")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 (a tensor or file is not what it should be), 2, 5 or 130."""

    def program() -> int:
        options = _parser().parse_args(argv)
        report = audit(
            options.base,
            options.adapter,
            options.merged,
            weights=options.weight,
            io_layout=options.io_layout,
            b_packing=options.b_packing,
            progress=progress(),
        )
        say("audit", report.to_json())
        return report.exit_code

    return run(program)
