"""Which cell is next. Pure bookkeeping: no threads, no processes, no clock.

Cells wait with their stack until its environment is ready. From then on any of them may run. The longest goes first, so
that no long one is left to run alone at the end. Stacks that are urgent go before all others (a release that is new).
Of cells that are as long the one goes first whose stack has started the fewest, ties in plan order. So where nothing is
known of durations, stacks show their first results early, and one that becomes ready late catches up. Nobody waits
while anything that is ready, and that there is room for, is left.

A stack that has begun is kept warm, half a gigabyte of imported libraries. So only so many are open at a time. Another
one begins when one of those has nothing left to start.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from harness.matrix.cell import Cell, Stack

StackKey = str


def stack_key(stack: Stack) -> StackKey:
    """Return what tells two stacks apart, every pin and the Python included: its id names three packages only."""
    return stack.key


@dataclass(kw_only=True)
class _Group:
    stack: Stack
    waiting: list[Cell] = field(default_factory=list)
    urgent: bool = False
    ready: bool = False
    started: int = 0


class Agenda:
    """The cells that have not been started."""

    def __init__(
        self, cells: Sequence[Cell], *, open_stacks: int | None = None, urgent: Collection[StackKey] = ()
    ) -> None:
        """Group ``cells`` by stack, both in the order given.

        Args:
            cells: the plan.
            open_stacks: how many stacks may have begun and have cells left; None: any number.
            urgent: the stacks whose cells go before all others.

        Raises:
            ValueError: two cells have the same id, so that one's result would replace the other's.
        """
        self._open_stacks = open_stacks
        self._groups: dict[StackKey, _Group] = {}
        self._seconds: dict[str, float] = {}
        seen: set[str] = set()
        for cell in cells:
            if cell.id in seen:
                raise ValueError(f"the plan has the cell {cell.id} twice")
            seen.add(cell.id)
            key = stack_key(cell.stack)
            self._groups.setdefault(key, _Group(stack=cell.stack, urgent=key in urgent)).waiting.append(cell)

    @property
    def stacks(self) -> dict[StackKey, Stack]:
        """The stacks, in the order in which their environments are wanted."""
        return {key: group.stack for key, group in self._groups.items()}

    def weigh(self, seconds: Callable[[Cell], float]) -> None:
        """Let the longest go first from now on; ``seconds`` says how long a cell takes.

        Stacks are wanted in that order too: the urgent ones, then those with most to do.
        """
        for group in self._groups.values():
            self._seconds |= {cell.id: seconds(cell) for cell in group.waiting}
            group.waiting.sort(key=lambda cell: -self._seconds[cell.id])
        self._groups = dict(sorted(self._groups.items(), key=lambda item: (not item[1].urgent, -self._work(item[1]))))

    def _work(self, group: _Group) -> float:
        return sum(self._seconds[cell.id] for cell in group.waiting)

    def remove(self, cells: Collection[str]) -> None:
        """Take out cells, by their ids, and the stacks that have none left."""
        for key, group in list(self._groups.items()):
            group.waiting = [cell for cell in group.waiting if cell.id not in cells]
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

    def next(self, fits: Callable[[Cell], bool] = lambda _: True) -> Cell | None:
        """Take out and return the cell to start now, None when no ready stack has one that ``fits``."""
        groups = [group for group in self._groups.values() if group.ready and group.waiting]
        begun = [group for group in groups if group.started]
        if self._open_stacks is not None and len(begun) >= self._open_stacks:
            groups = begun
        firsts = [(group, next(filter(fits, group.waiting), None)) for group in groups]
        found = [(group, cell) for group, cell in firsts if cell is not None]
        if not found:
            return None
        group, cell = min(
            found, key=lambda each: (not each[0].urgent, -self._seconds.get(each[1].id, 0.0), each[0].started)
        )
        group.started += 1
        group.waiting.remove(cell)
        return cell
