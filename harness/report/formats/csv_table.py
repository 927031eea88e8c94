"""The table with machine values, for a notebook or a spreadsheet; pure.

It is made as a pandas data frame and as CSV. pandas takes a second to be imported, which a report need not wait for, so
the CSV is written without it; a test holds the two together.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.report import quantized, reuse
from harness.report.format import Format
from harness.report.table import COLUMNS, Row, ordered

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class _Values:
    """One column: a value for each row, None where nothing was measured, and pandas' name for what they are."""

    key: str
    data: Sequence[str | float | None]
    dtype: Literal["float64", "Int64", "object", "str"]


def _columns(rows: Sequence[Row]) -> list[_Values]:
    merges = [row.result.merge for row in rows]
    found = [
        _Values(key=column.key, data=[column.value(row) for row in rows], dtype="float64" if column.numeric else "str")
        for column in COLUMNS
    ]
    found += [
        _Values(key=key, data=[None if it is None else getattr(it, key) for it in merges], dtype="Int64")
        for key in ("applied", "attempted")
    ]
    found += [
        _Values(
            key=column.key, data=[column.value(row) for row in rows], dtype="float64" if column.numeric else "object"
        )
        for column in quantized.COLUMNS
    ]
    found.append(_Values(key="age_seconds", data=[reuse.age_seconds(row.result) for row in rows], dtype="float64"))
    found += [
        _Values(key="outcome", data=[row.result.outcome for row in rows], dtype="str"),
        _Values(key="stage", data=[row.result.stage for row in rows], dtype="str"),
        _Values(key="status", data=[row.status for row in rows], dtype="str"),
        _Values(key="standing", data=[row.standing for row in rows], dtype="str"),
    ]
    return found


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Return a data frame with a line per cell, indexed by cell id, in the report's order.

    The columns are the report's, unrounded. KL is in nats. ``merged`` and ``samples`` are shares in [0, 1], with their
    counts beside them. What was not measured is NaN (counts: ``<NA>``). After them stand the columns of quantised
    bases: what was quantised and its bytes as shares, KL in nats, MiB; and the age of a result that was reused, NaN
    for one of a cell that was run. ``outcome``, ``status``, ``standing`` and ``stage`` come last. No column holds free
    text from a result, so a spreadsheet has nothing to mistake for a formula.

    Raises:
        ValueError: when two rows are of the same cell.
    """
    import pandas as pd  # noqa: PLC0415 - see the module

    rows = ordered(rows)
    index = pd.Index([row.result.cell_id for row in rows], name="cell", dtype="str")
    return pd.DataFrame(
        {it.key: pd.Series(list(it.data), index=index, dtype=it.dtype) for it in _columns(rows)}, index=index
    )


def render_csv(rows: Iterable[Row]) -> str:
    """Return ``frame`` as CSV; what was not measured is an empty field.

    Raises:
        ValueError: when two rows are of the same cell.
    """
    rows = ordered(rows)
    columns = _columns(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("cell", *(it.key for it in columns)))
    for number, row in enumerate(rows):
        writer.writerow((row.result.cell_id, *(_field(it.data[number], it.dtype) for it in columns)))
    return text.getvalue()


def _field(value: str | float | None, dtype: str) -> str:
    if value is None or value != value:  # NaN is not itself  # noqa: PLR0124
        return ""
    return repr(float(value)) if dtype == "float64" else str(value)


FORMAT = Format(
    file="report.csv",
    serves="a notebook or a spreadsheet: a line per cell, unrounded, with the columns of quantised bases",
    render=lambda rows, _generated: render_csv(rows),
)
