"""Pieces of work shared out to threads, which follow the cores.

Reading, arithmetic and writing of different pieces overlap. Each of the three releases Python's lock, and is done by
whichever thread took the piece. torch's own parallelism is switched off meanwhile. Threads that wait for each other
inside one small product would cost more than they bring, and one thread per product makes the bytes independent of the
number of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Condition, Event, Lock
from typing import Generic, ParamSpec, TypeVar

import torch

from harness.merge.errors import ThreadLimitError

POLL_SECONDS = 0.1

Item = TypeVar("Item")
State = TypeVar("State")
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextmanager
def one_thread_per_operation() -> Iterator[None]:
    """Keep torch from splitting single operations over threads; what was set before is set again afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Pool(ThreadPoolExecutor):
    """Threads that are started as they are needed, which the system may refuse: a limit of the user's, of a container,
    or of memory.
    """

    def submit(
        self, function: Callable[Arguments, Result], /, *args: Arguments.args, **options: Arguments.kwargs
    ) -> Future[Result]:
        """Have a thread call ``function``.

        Raises:
            ThreadLimitError: it cannot be started.
        """
        try:
            return super().submit(function, *args, **options)
        except RuntimeError as error:
            if "start new thread" not in str(error):
                raise
            raise ThreadLimitError(
                "the system lets this process start no further thread.",
                "Raise the limit (ulimit -u, or the container's pids limit), or use fewer threads: --threads of a"
                " merge.",
            ) from error


class Lanes(Generic[Item]):
    """Sequences of items that threads take from.

    Each thread has a sequence of its own while there are enough, and then takes from whichever has some left. A lane is
    a file: threads that write to the same one wait for each other in the kernel. No more than ``most`` lanes are begun
    at once.
    """

    def __init__(self, lanes: Iterable[Iterator[Item]], most: int) -> None:
        self._coming = iter(lanes)
        self._open: list[Iterator[Item] | None] = [None] * most
        self._lock = Lock()

    def take(self, number: int) -> Item | None:
        """Return the next item for thread ``number``, None when nothing is left."""
        count = len(self._open)
        with self._lock:
            for offset in range(count):
                place = (number + offset) % count
                while True:
                    lane = self._open[place] or next(self._coming, None)
                    if lane is None:
                        break
                    self._open[place] = lane
                    item = next(lane, None)
                    if item is not None:
                        return item
                    self._open[place] = None
        return None


def share_out(
    lanes: Lanes[Item],
    work: Callable[[State, Item], None],
    state: Callable[[], State],
    *,
    threads: int,
    poll: Callable[[], None],
) -> None:
    """Do ``work(state, item)`` for every item of the lanes on ``threads`` threads, each with a state of its own.

    The first exception, from a lane or from ``work``, ends all of them and is raised here. ``poll`` is called several
    times a second in the calling thread, to show progress; what it raises, or an interrupt, ends the work too.

    Raises:
        ThreadLimitError: a thread cannot be started.
    """
    stop, idle, running = Event(), Condition(), 0

    def drain(number: int) -> None:
        nonlocal running
        with idle:
            if stop.is_set():
                return
            running += 1
        try:
            mine = state()
            while not stop.is_set() and (item := lanes.take(number)) is not None:
                work(mine, item)
        except BaseException:
            stop.set()
            raise
        finally:
            with idle:
                running -= 1
                idle.notify_all()

    try:
        with Pool(threads, thread_name_prefix="merge") as pool:
            try:
                pending = {pool.submit(drain, number) for number in range(threads)}
                while pending:
                    done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_EXCEPTION)
                    poll()
                    for future in done:
                        future.result()
            finally:
                stop.set()
    finally:
        # An interrupt while a thread starts leaves one that the pool does not know of; nobody may go on writing after
        # this.
        with idle:
            stop.set()
            idle.wait_for(lambda: running == 0)
