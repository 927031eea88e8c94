"""Tables in Markdown (GitHub's dialect); pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest


def pipe_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Iterable[bool] = ()) -> str:
    """Return a table. Columns are not padded, so that a changed row changes one line of a committed page.

    Args:
        head: the titles.
        rows: the cells, as Markdown that holds no bare ``|`` and no line end.
        numeric: which columns are drawn at the right; those that it does not reach are not.
    """
    marks = ["---:" if number else "---" for _, number in zip_longest(head, numeric, fillvalue=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, marks, *rows))
