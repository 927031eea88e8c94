"""The warm workers of a run: one for each stack that has cells left, made when it is first asked for.

A worker that has died is replaced. One whose home directory a cell has changed gets no further cell, is ended when its
last has ended, and is replaced. Where no worker can be had there is a ``Refusal``: the imports fail, nothing can be
forked after them, or it dies again and again. The cells of that stack then run some other way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from harness.contract.cell_fields import Device
from harness.execution.agenda import StackKey
from harness.execution.child import ParentLostError
from harness.execution.warm.worker import Refusal, WarmWorker, WorkerSpec

MOST_LOSSES = 3
"""A stack gets no further worker when so many have died, with no cell ended between."""
_TICK = 0.05


@dataclass(frozen=True, kw_only=True)
class WorkerKey:
    """What cells must have in common to be forked from one process.

    Attributes:
        stack: the key of their stack, see ``agenda``.
        device: where they run: only on a GPU does an environment get the variables of its driver.
        threads: how many they compute with, which libraries read when they are loaded.
    """

    stack: StackKey
    device: Device
    threads: int


class NoWorkerError(Exception):
    """There is no warm worker for this stack. ``refusal`` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


class SharedHomeChangedError(ParentLostError):
    """The home directory of a cell's worker has changed while other cells ran there: its own doing, or another's."""


class CancelledError(Exception):
    """The run was cancelled while a worker was waited for."""


@dataclass(kw_only=True)
class _Slot:
    """The place of one stack's worker. ``making`` is held by whoever starts one, so that the others wait for it."""

    label: str
    making: threading.Lock = field(default_factory=threading.Lock)
    worker: WarmWorker | None = None
    refusal: Refusal | None = None
    losses: int = 0


class WarmPool:
    """Workers by stack. Its methods may be called from several threads at once."""

    def __init__(self, note: Callable[[str], None]) -> None:
        """``note`` takes a sentence for whoever watches."""
        self._note = note
        self._lock = threading.Lock()  # held for bookkeeping only: nothing is started, ended or looked at meanwhile
        self._slots: dict[WorkerKey, _Slot] = {}
        self._users: dict[WarmWorker, int] = {}
        self._shared: set[WarmWorker] = set()  # those that some cell now running on them does not have to itself
        self._retired: set[WarmWorker] = set()

    @contextmanager
    def worker(
        self, key: WorkerKey, label: str, spec: Callable[[], WorkerSpec], *, cancelled: threading.Event, seconds: float
    ) -> Iterator[WarmWorker]:
        """Give a worker for one cell, which ends within the block.

        Args:
            key: whose worker.
            label: what a person calls that.
            spec: how one is started, where there is none.
            cancelled: ends the waiting.
            seconds: how long imports may take.

        Raises:
            NoWorkerError: there is none.
            CancelledError: the run was cancelled meanwhile.
            SharedHomeChangedError: after the block: what the cell found may be another's.
        """
        with self._lock:
            slot = self._slots.setdefault(key, _Slot(label=label))
        worker = self._take(slot, spec, cancelled, seconds)
        changed: list[str] = []
        try:
            yield worker
        finally:
            alone = self._is_alone(worker)
            changed = self._give_back(slot, worker)
        if changed and not alone:
            raise SharedHomeChangedError(
                f"the home directory that it shared with others has changed ({_some(changed)})"
            )

    def release(self, stack: StackKey) -> None:
        """No further cell of this stack will ask for a worker."""
        with self._lock:
            slots = [self._slots.pop(key) for key in list(self._slots) if key.stack == stack]
            workers = [slot.worker for slot in slots if slot.worker is not None]
        for worker in workers:
            self._retire(worker)

    def close(self) -> None:
        """End all workers."""
        with self._lock:
            workers = [slot.worker for slot in self._slots.values() if slot.worker is not None] + list(self._retired)
            self._slots.clear()
            self._retired.clear()
        for worker in workers:
            worker.close()

    def _take(
        self, slot: _Slot, spec: Callable[[], WorkerSpec], cancelled: threading.Event, seconds: float
    ) -> WarmWorker:
        while not slot.making.acquire(timeout=_TICK):
            if cancelled.is_set():
                raise CancelledError
        try:
            while True:
                if cancelled.is_set():
                    raise CancelledError
                with self._lock:
                    if slot.refusal is not None:
                        raise NoWorkerError(slot.refusal)
                    if slot.worker is not None:
                        self._users[slot.worker] = self._users.get(slot.worker, 0) + 1
                        if self._users[slot.worker] > 1:
                            self._shared.add(slot.worker)
                        return slot.worker
                worker = self._start(slot, spec(), cancelled, seconds)
                with self._lock:
                    slot.worker = worker
        finally:
            slot.making.release()

    def _start(self, slot: _Slot, spec: WorkerSpec, cancelled: threading.Event, seconds: float) -> WarmWorker | None:
        """Start a worker. None when it came to nothing; the slot then says whether to try again."""
        try:
            worker = WarmWorker(spec)
        except OSError as error:
            reason = f"{error.filename} cannot be started: {error.strerror}"
            self._refuse(slot, Refusal(kind="process", reason=reason))
            spec.home.remove()
            return None
        try:
            refusal = worker.wait_until_ready(cancelled, seconds)
        except ParentLostError as error:
            if not cancelled.is_set():
                self._count_loss(slot, f"{error}, during its imports")
            worker.close()
            return None
        if refusal is not None:
            self._refuse(slot, refusal)
            worker.close()
            return None
        return worker

    def _is_alone(self, worker: WarmWorker) -> bool:
        with self._lock:
            return worker not in self._shared

    def _give_back(self, slot: _Slot, worker: WarmWorker) -> list[str]:
        """Let go of a worker; return what has changed in its home directory."""
        changed = [] if worker.lost else worker.spec.home.changed()
        spoilt = bool(changed) or worker.lost
        with self._lock:
            self._users[worker] -= 1
            if not self._users[worker]:
                self._shared.discard(worker)
            first = slot.worker is worker and spoilt  # of those who use it, the one that finds out
            if first:
                slot.worker = None
            elif not spoilt:
                slot.losses = 0
            retired = worker in self._retired
        if first and worker.lost:
            self._count_loss(slot, "it has died")
        elif first:
            self._note(
                f"{slot.label}: a cell has changed the warm worker's home directory ({_some(changed)}); it is replaced"
            )
        if spoilt or retired:
            self._retire(worker)
        return changed

    def _count_loss(self, slot: _Slot, how: str) -> None:
        with self._lock:
            slot.losses += 1
            losses = slot.losses
        if losses < MOST_LOSSES:
            self._note(f"{slot.label}: the warm worker is replaced: {how}")
        else:
            self._refuse(slot, Refusal(kind="process", reason=f"{how}, like {losses - 1} before it"))

    def _refuse(self, slot: _Slot, refusal: Refusal) -> None:
        with self._lock:
            slot.refusal = refusal
        self._note(f"{slot.label}: no warm worker, cells start processes of their own: {refusal.reason}")

    def _retire(self, worker: WarmWorker) -> None:
        """End a worker, or have it ended by the last of those who use it."""
        with self._lock:
            in_use = self._users.get(worker, 0) > 0
            if in_use:
                self._retired.add(worker)
            else:
                self._retired.discard(worker)
                self._users.pop(worker, None)
        if not in_use:
            worker.close()


def _some(names: list[str], *, most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
