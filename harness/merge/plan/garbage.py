"""Python's search for reference cycles, paused while a plan is made.

A plan is hundreds of thousands of small objects that live as long as it does and hold no cycles. The collector would go
through all of them again and again as they become more, a third of the time that planning takes at DeepSeek-V3's size.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Look for no cycles meanwhile; what was set before is set again afterwards."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
