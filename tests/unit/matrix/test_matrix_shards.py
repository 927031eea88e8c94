"""Parts of a plan: together the whole, disjoint, and about as long as each other."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.matrix.catalogue import read_catalogue
from harness.matrix.config import load_config
from harness.matrix.costs import published_seconds
from harness.matrix.locate import find_config
from harness.matrix.plan import Selection, plan_cells
from harness.matrix.shards import LEAST, shard_cuts


def test_a_cell_goes_where_its_middle_falls() -> None:
    # End to end they are 0-6, 6-8, 8-9, 9-12; middles 3, 7, 8.5, 10.5; the half is 6.
    assert shard_cuts([6, 2, 1, 3], 2) == [0, 1, 4]
    # Thirds end at 4 and 8.
    assert shard_cuts([6, 2, 1, 3], 3) == [0, 1, 2, 4]
    assert shard_cuts([1, 1, 1, 1], 2) == [0, 2, 4]
    assert shard_cuts([1, 1, 1, 1], 1) == [0, 4]


def test_no_part_is_empty_as_long_as_there_are_cells() -> None:
    assert shard_cuts([100, 1, 1], 3) == [0, 1, 2, 3]
    assert shard_cuts([1, 1, 100], 3) == [0, 1, 2, 3]
    assert shard_cuts([0, 0, 0], 3) == [0, 1, 2, 3]
    assert shard_cuts([5, 5], 4) == [0, 1, 2, 2, 2]


@settings(deadline=None)
@given(seconds=st.lists(st.floats(0, 1000), min_size=1, max_size=60), count=st.integers(1, 12))
def test_parts_are_the_whole_and_balanced(seconds: list[float], count: int) -> None:
    cuts = shard_cuts(seconds, count)
    parts = [seconds[begin:end] for begin, end in pairwise(cuts)]

    assert len(parts) == count
    assert [it for part in parts for it in part] == seconds, "disjoint, in order, and together the whole"
    lengths = [[max(it, LEAST) for it in part] for part in parts]
    whole = sum(map(sum, lengths))
    longest = max(max(it, LEAST) for it in seconds)
    assert max(map(sum, lengths)) <= (whole / count + longest) * (1 + 1e-9), (
        "an even share and the longest cell at most"
    )
    if len(seconds) >= count:
        assert all(parts)


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 12))
def test_shards_of_the_shipped_profile_are_balanced(count: int) -> None:
    catalogue = read_catalogue()
    config = load_config(find_config(None), catalogue)
    whole = plan_cells(config, catalogue, Selection())
    shards = [plan_cells(config, catalogue, Selection(shard=(n, count))) for n in range(1, count + 1)]

    assert [cell.id for shard in shards for cell in shard] == [cell.id for cell in whole]
    seconds = [sum(map(published_seconds, shard)) for shard in shards]
    longest = max(map(published_seconds, whole))
    assert max(seconds) - min(seconds) <= 2 * longest
