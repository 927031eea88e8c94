"""What a merge will take: memory, from what is held at once, and time, from bytes and a disk's speed.

The memory is a bound worked out from the plan; the time is a guess, because the disk is not asked.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

from harness.merge.plan.merge_plan import MergePlan, PairContribution

KEPT_BYTES = 384 * 1024 * 1024
"""What the factors of all shards that are written at once should take together.

Those of one are held whatever they take.
"""
MOST_LANES = 4
"""Shards written at once: enough that threads rarely wait for the same file."""
MOST_THREADS = 16
"""Beyond this the disk, not the arithmetic, is the limit."""
PER_THREAD = 40 * 1024 * 1024
"""Buffers of one thread, with room for what torch's operations take for themselves."""
WIDE = 2
"""How many times that it is where values are float64, decoded or scaled."""
FIXED = 96 * 1024 * 1024
BYTES_PER_SECOND = 1.0e9
"""Written bytes per second of a fast local disk; see reports/bench."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Peak memory above the imports and seconds, for so many threads; ``lanes`` shards are written at once."""

    threads: int
    lanes: int
    peak_bytes: int
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Return JSON-ready values."""
        return {
            "threads": self.threads,
            "shards_at_once": self.lanes,
            "peak_memory_bytes": self.peak_bytes,
            "seconds_at_1_gb_per_s": round(self.seconds, 1),
        }


def _largest_layer(plan: MergePlan) -> int:
    """Return the bytes of the factors that the rows of one layer need, where that is most.

    Each is held twice while it is decoded.
    """
    sizes = [
        contribution.pair.lora_A.nbytes + contribution.pair.lora_B.nbytes
        if isinstance(contribution, PairContribution)
        else contribution.info.nbytes
        for contribution in plan.contributions
    ]
    layers: dict[int | None, set[int]] = {}
    for row in plan.rows:
        for region in row.regions:
            layers.setdefault(row.layer, set()).update(region.contributions)
    totals = Counter({layer: sum(sizes[number] for number in numbers) for layer, numbers in layers.items()})
    return max(totals.values(), default=0)


def default_threads() -> int:
    """Return how many threads a merge uses: as many as this process may use cores, at most ``MOST_THREADS``."""
    return min(MOST_THREADS, len(os.sched_getaffinity(0)))


def _is_wide(plan: MergePlan, accumulate: str) -> bool:
    scaled = any(
        isinstance(contribution, PairContribution) and contribution.magnitude for contribution in plan.contributions
    )
    return accumulate == "float64" or plan.quantization is not None or scaled


def estimate(plan: MergePlan, threads: int, accumulate: str = "float32") -> Estimate:
    """Return what a merge on ``threads`` threads will take, and how many shards it should write at once."""
    layer = _largest_layer(plan)
    lanes = max(1, min(threads, MOST_LANES, len(plan.base.shards), KEPT_BYTES // max(1, layer)))
    size = sum(shard.size for shard in plan.base.shards)
    return Estimate(
        threads=threads,
        lanes=lanes,
        peak_bytes=FIXED + threads * PER_THREAD * (WIDE if _is_wide(plan, accumulate) else 1) + (lanes + 1) * layer,
        seconds=size / BYTES_PER_SECOND,
    )
