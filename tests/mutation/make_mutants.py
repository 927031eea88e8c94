"""Mutants of a module's source, by cosmic-ray's operators: one small change each, in a line that a cell has run."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

NEED_ARGUMENTS = ("core/VariableInserter", "core/VariableReplacer")
"""Operators that want to be told of variables."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One changed function.

    Attributes:
        module: its module, as ``peft.tuners.lora.layer``.
        function: its qualified name in it, as ``ParamWrapper.get_delta_weight``.
        operator: what made it.
        line: where, from 1.
        source: the whole changed module.
        change: the lines that differ, as a diff shows them.
    """

    module: str
    function: str
    operator: str
    line: int
    source: str
    change: str

    @property
    def name(self) -> str:
        """What it is called in a table and in the list of equivalent ones."""
        return f"{self.module}:{self.line} {self.function} {self.operator.removeprefix('core/')}: {self.change}"


class _Positions(Visitor):  # type: ignore[misc]  # cosmic-ray has no types
    """Collects the lines of an operator's occurrences, in the order in which cosmic-ray counts them."""

    def __init__(self, operator: Any) -> None:
        self.lines: list[int] = []
        self._operator = operator

    def visit(self, node: Any) -> Any:
        """Note where the operator can change a node."""
        self.lines += [start[0] for start, _ in self._operator.mutation_positions(node)]
        return node


def functions_of(code: CodeType) -> dict[str, CodeType]:
    """Return the code of every function in a module's code, by qualified name."""
    found: dict[str, CodeType] = {}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= {constant.co_qualname: constant, **functions_of(constant)}
    return found


def _changed_function(before: dict[str, CodeType], source: str, module: str) -> str | None:
    """Return the outermost function whose code a change concerns; None where it is no code, or no function's."""
    try:
        after = functions_of(compile(source, module, "exec"))
    except SyntaxError:
        return None
    changed = [name for name in after if name in before and after[name] != before[name]]
    # A class body is code too, which nobody runs again.
    functions = [name for name in changed if "<" not in name and after[name].co_flags & 1]
    return min(functions, key=len, default=None)


def mutants_of(module: str, source: str, lines: Collection[int]) -> Iterator[Mutant]:
    """Yield every mutant of a module whose change lies in one of the lines."""
    before = functions_of(compile(source, module, "exec"))
    seen: set[str] = set()
    for name in sorted(set(operator_names()) - set(NEED_ARGUMENTS)):
        operator = get_operator(name)()
        positions = _Positions(operator)
        positions.walk(get_ast(source))
        for occurrence, line in enumerate(positions.lines):
            if line not in lines:
                continue
            mutated = mutate_code(source, operator, occurrence)
            if mutated is None or mutated in seen or (function := _changed_function(before, mutated, module)) is None:
                continue
            seen.add(mutated)
            yield Mutant(
                module=module,
                function=function,
                operator=name,
                line=line,
                source=mutated,
                change=_change(source, mutated),
            )


def _change(before: str, after: str) -> str:
    """Return the lines that differ: ``- old + new``."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    kept = [line for line in lines if line[:1] in {"-", "+"} and not line.startswith(("---", "+++"))]
    return " ".join(f"{line[0]} {line[1:].strip()}" for line in kept)
