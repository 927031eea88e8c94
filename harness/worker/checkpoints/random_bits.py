"""Weights from a counter: the same bytes with every version of every library, on every machine.

Element ``i`` of a tensor is a function of (seed, tensor name, i) alone. It is SplitMix64's finaliser (Steele, Lea &
Flood 2014) over a 64-bit counter. The counter's start is the SHA-256 of seed and name. The four 16-bit words of the
output are added up, which gives an integer of 18 bits that is nearly normal. Shifted to mean zero and scaled by a power
of two, it is exact in float32. No transcendental function and no library's random generator is involved.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MEAN_OF_SUM = 4 * 65535 // 2


def splitmix64(start: int, count: int) -> NDArray[np.uint64]:
    """Return the first ``count`` outputs of SplitMix64 seeded with ``start``: (count,) uint64."""
    import numpy as np

    counter = np.arange(1, count + 1, dtype=np.uint64)
    bits = counter * np.uint64(_GOLDEN) + np.uint64(start)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(_MIX_1)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(_MIX_2)
    return bits ^ (bits >> np.uint64(31))


def random_integers(seed: int, name: str, count: int) -> NDArray[np.int64]:
    """Return ``count`` integers in [-131070, 131070], mean 0, standard deviation 37837: (count,) int64."""
    import numpy as np

    start = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
    words = splitmix64(start, count).astype("<u8").view("<u2").reshape(count, 4)
    total: NDArray[np.int64] = words.sum(axis=1, dtype=np.int64) - _MEAN_OF_SUM
    return total


def random_float32(seed: int, name: str, count: int, exponent: int) -> NDArray[np.float32]:
    """Return ``count`` float32 with mean 0 and standard deviation ``1.155 * 2**-exponent``: (count,)."""
    import numpy as np

    return random_integers(seed, name, count).astype(np.float32) * np.float32(2.0 ** (-15 - exponent))


def to_bfloat16_bytes(values: NDArray[np.float32]) -> bytes:
    """Round float32 to bfloat16 (nearest, ties to even) by integer arithmetic and return little-endian bytes."""
    import numpy as np

    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype("<u2").tobytes()
