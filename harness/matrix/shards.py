"""Dividing a plan into parts that take about as long as each other. Pure."""

from __future__ import annotations

from collections.abc import Sequence

LEAST = 0.1
"""Seconds that a cell counts at least, so that no number of cells is nothing."""


def shard_cuts(seconds: Sequence[float], count: int) -> list[int]:
    """Return where ``count`` contiguous parts of a plan begin and end: part I (from 1) is ``[cuts[I-1]:cuts[I]]``.

    A cell goes to the part in which its middle falls when all cells lie end to end and the whole is divided evenly. So
    no part takes longer than its even share and the longest cell together. No part is empty as long as there are as
    many cells as parts; otherwise the last ones are.

    Args:
        seconds: how long each cell takes, in plan order.
        count: how many parts, at least 1.
    """
    lengths = [max(it, LEAST) for it in seconds]
    whole = sum(lengths)
    middles: list[float] = []
    begin = 0.0
    for length in lengths:
        middles.append(begin + length / 2)
        begin += length
    cuts = [0]
    for part in range(1, count):
        even = sum(middle < whole * part / count for middle in middles)
        # One cell at least here, and one for each of the parts that follow.
        left = len(lengths) - (count - part)
        cuts.append(min(max(cuts[-1] + 1, min(even, left)), len(lengths)))
    return [*cuts, len(lengths)]
