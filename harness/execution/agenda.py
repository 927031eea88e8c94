"""Which cell is next. Pure bookkeeping: no threads, no processes, no clock.

Cells wait with their stack until its environment is ready. From then on any of them may run. Among ready stacks the one
that has started the fewest cells goes first, ties in plan order. So stacks show their first results early, and one that
becomes ready late catches up. Nobody waits while anything that is ready is left.

A stack that has begun is kept warm, half a gigabyte of imported libraries. So only so many are open at a time. Another
one begins when one of those has nothing left to start.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from harness.matrix.cell import Cell, Stack

StackKey = str


def stack_key(stack: Stack) -> StackKey:
    """Return what tells two stacks apart, every pin and the Python included: its id names three packages only."""
    return stack.key


@dataclass(kw_only=True)
class _Group:
    stack: Stack
    waiting: deque[Cell] = field(default_factory=deque)
    ready: bool = False
    started: int = 0


class Agenda:
    """The cells that have not been started."""

    def __init__(self, cells: Sequence[Cell], *, open_stacks: int | None = None) -> None:
        """Group ``cells`` by stack, both in the order given.

        Args:
            cells: the plan.
            open_stacks: how many stacks may have begun and have cells left; None: any number.

        Raises:
            ValueError: two cells have the same id, so that one's result would replace the other's.
        """
        self._open_stacks = open_stacks
        self._groups: dict[StackKey, _Group] = {}
        seen: set[str] = set()
        for cell in cells:
            if cell.id in seen:
                raise ValueError(f"the plan has the cell {cell.id} twice")
            seen.add(cell.id)
            self._groups.setdefault(stack_key(cell.stack), _Group(stack=cell.stack)).waiting.append(cell)

    @property
    def stacks(self) -> dict[StackKey, Stack]:
        """The stacks, in the order in which their environments are wanted."""
        return {key: group.stack for key, group in self._groups.items()}

    def remove(self, cells: Collection[str]) -> None:
        """Take out cells, by their ids, and the stacks that have none left."""
        for key, group in list(self._groups.items()):
            group.waiting = deque(cell for cell in group.waiting if cell.id not in cells)
            if not group.waiting:
                del self._groups[key]

    def ready(self, key: StackKey) -> None:
        """Let the cells of a stack run: its environment is there."""
        self._groups[key].ready = True

    def drop(self, key: StackKey) -> list[Cell]:
        """Take out and return the cells of a stack whose environment cannot be made."""
        cells = list(self._groups[key].waiting)
        self._groups[key].waiting.clear()
        return cells

    def next(self) -> Cell | None:
        """Take out and return the cell to start now, None when no ready stack has any left."""
        groups = [group for group in self._groups.values() if group.ready and group.waiting]
        if not groups:
            return None
        begun = [group for group in groups if group.started]
        if self._open_stacks is not None and len(begun) >= self._open_stacks:
            groups = begun
        group = min(groups, key=lambda candidate: candidate.started)
        group.started += 1
        return group.waiting.popleft()
