"""Progress for a log, where there is no terminal to draw a bar on.

There is a line now and then, and none for what is soon done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from rich.filesize import decimal

SECONDS = 30
"""Between two lines at least this."""
PARTS = 20
"""At most so many lines, evenly over the bytes: a merge of hours needs no line every half minute."""


class ProgressLines:
    """Tells bytes, speed and time left, each line when both enough time and enough bytes have gone by."""

    def __init__(self, label: str, show: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._label = label
        self._show = show
        self._clock = clock
        self._start: tuple[float, int] | None = None
        self._last = (0.0, 0)

    def update(self, done: int, total: int) -> None:
        """Take up that ``done`` of ``total`` bytes are done.

        Speed counts from the first call, which may follow a resumption.
        """
        now = self._clock()
        if self._start is None:
            self._start = self._last = now, done
            return
        if now - self._last[0] < SECONDS or (done - self._last[1]) * PARTS < max(total, 1):
            return
        self._last = now, done
        speed = (done - self._start[1]) / (now - self._start[0])
        left = timedelta(seconds=round((total - done) / speed))
        self._show(
            f"{self._label}: {100 * done // total} % ({decimal(done)} of {decimal(total)}), "
            f"{decimal(round(speed))}/s, {left} left"
        )
