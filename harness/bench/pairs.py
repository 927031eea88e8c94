"""In which order the members of each round run; pure.

Whoever runs second finds another machine than whoever ran first: a warmer disk, a fuller write cache, a hotter
processor. So each round begins one member further on, and over as many rounds as there are members everybody has stood
in every place.
"""

from __future__ import annotations

from collections.abc import Sequence


def rounds(members: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Return the order of ``members`` in each of ``count`` rounds; for two, the order alternates."""
    return [tuple(members[(start + place) % len(members)] for place in range(len(members))) for start in range(count)]
