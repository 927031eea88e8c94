"""The table with machine values, for a notebook or a spreadsheet; pure.

It is made as a pandas data frame and as CSV.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from harness.report import quantized
from harness.report.format import Format
from harness.report.table import COLUMNS, Row, ordered


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Return a data frame with a line per cell, indexed by cell id, in the report's order.

    The columns are the report's, unrounded. KL is in nats. ``merged`` and ``samples`` are shares in [0, 1], with their
    counts beside them. What was not measured is NaN (counts: ``<NA>``). After them stand the columns of quantised
    bases: what was quantised and its bytes as shares, KL in nats, MiB. ``outcome``, ``status``, ``standing`` and
    ``stage`` come last. No column holds free text from a result, so a spreadsheet has nothing to mistake for a formula.

    Raises:
        ValueError: when two rows are of the same cell.
    """
    rows = ordered(rows)
    table = pd.DataFrame(
        {column.key: [column.value(row) for row in rows] for column in COLUMNS},
        index=pd.Index([row.result.cell_id for row in rows], name="cell", dtype="str"),
    )
    table = table.astype({column.key: "float64" for column in COLUMNS if column.numeric})
    merges = [row.result.merge for row in rows]
    table["applied"] = pd.array([None if merge is None else merge.applied for merge in merges], dtype="Int64")
    table["attempted"] = pd.array([None if merge is None else merge.attempted for merge in merges], dtype="Int64")
    for column in quantized.COLUMNS:
        values = [column.value(row) for row in rows]
        table[column.key] = pd.Series(values, index=table.index, dtype="float64" if column.numeric else "object")
    table["outcome"] = [row.result.outcome for row in rows]
    table["stage"] = [row.result.stage for row in rows]
    table["status"] = [row.status for row in rows]
    table["standing"] = [row.standing for row in rows]
    return table


def render_csv(rows: Iterable[Row]) -> str:
    """Return ``frame`` as CSV; what was not measured is an empty field."""
    return str(frame(rows).to_csv(lineterminator="\n"))


FORMAT = Format(
    file="report.csv",
    serves="a notebook or a spreadsheet: a line per cell, unrounded, with the columns of quantised bases",
    render=lambda rows, _generated: render_csv(rows),
)
