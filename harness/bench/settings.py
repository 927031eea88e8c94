"""What a run measures and how often; the sizes follow from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

GB = 10**9


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run.

    Attributes:
        sizes: bytes of the qwen3_moe checkpoints; the first takes part in every case, the others are merged cold only.
        pairs: interleaved pairs at the first size, cold and warm each.
        large_pairs: at the other sizes.
        rounds: of the slow contenders and of whole commands.
        seed: of the checkpoints and of the resampling.
        quick: a smoke run, whose numbers mean nothing.
    """

    sizes: tuple[int, ...] = (2 * GB, 16 * GB)
    pairs: int = 20
    large_pairs: int = 5
    rounds: int = 5
    seed: int = 0
    quick: bool = False

    def pairs_at(self, size: int) -> int:
        """Return how many pairs are measured at a size."""
        return self.pairs if size == self.sizes[0] else self.large_pairs

    def to_json(self) -> dict[str, Any]:
        """Return the settings as they are kept."""
        return {**asdict(self), "sizes": list(self.sizes)}


def size_text(size: int) -> str:
    """Return a size as ``2 GB``."""
    return f"{size / GB:g} GB"
