"""Ctrl-C, SIGTERM and a closed terminal become one event, and what is left of making environments is ended.

While cells run, the signals raise nothing. A handler has an event set, and the scheduler winds up in its own time. So a
second Ctrl-C cannot strike in the middle of cleaning up. There often is a second one: terminals send it to the whole
group, nox passes it on again, people press it twice.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 3.0
_PAUSE = 0.05


@contextmanager
def signals_set(cancelled: threading.Event) -> Iterator[None]:
    """Within the block, SIGINT, SIGTERM and SIGHUP set ``cancelled``.

    Only the main thread can do so; elsewhere nothing changes. A signal that is ignored on entry stays ignored
    (``nohup`` means it). SIGCHLD is not: whoever has ignored it leaves no exit status to be waited for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received: SimpleQueue[int | None] = SimpleQueue()

    def handle(number: int, _frame: FrameType | None) -> None:
        # Not the event itself: a second signal in the middle of set() would wait for ever for the lock of the first.
        received.put(number)

    def relay() -> None:
        if received.get() is not None:
            cancelled.set()

    relaying = threading.Thread(target=relay, name="signals", daemon=True)
    relaying.start()
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGCHLD)}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, handler in before.items():
        if number in SIGNALS and handler is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        received.put(None)
        relaying.join()


def children() -> set[psutil.Process]:
    """The direct children of this process."""
    return set(psutil.Process().children())


def end_children(spared: set[psutil.Process], *, until: Callable[[], bool]) -> None:
    """End the children of this process other than ``spared``, with theirs, until ``until`` says that it is enough.

    For commands that make environments. They run in threads that wait for them and may start the next. They belong to a
    package that knows nothing of cancelling. SIGTERM first; after three seconds SIGKILL. They are not reaped here: the
    thread that waits for an exit status would miss it, and read that as success.
    """
    deadline = time.monotonic() + _PATIENCE
    asked: set[psutil.Process] = set()
    while not until():
        late = time.monotonic() > deadline
        for child in children() - spared:
            try:
                for process in [*child.children(recursive=True), child]:
                    if late:
                        process.kill()
                    elif process not in asked:
                        asked.add(process)
                        process.terminate()
            except psutil.NoSuchProcess:
                continue
        time.sleep(_PAUSE)
    for process in asked:  # what its parent left behind, having been asked before
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
