"""Mutants of a module's source, by cosmic-ray's operators: one small change each, in a line that a cell has run."""

from __future__ import annotations

import difflib
import hashlib
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

LEFT_OUT = ("core/VariableInserter", "core/VariableReplacer", "core/RemoveDecorator")
"""Operators that want to be told of variables, and one that changes no function's code."""


def _says_something(operator: str) -> bool:
    """Whether an operator can change what code does: identity is equality of None, small numbers and names."""
    before, _, after = operator.removeprefix("core/ReplaceComparisonOperator_").partition("_")
    identity = {"Is", "IsNot"}
    return operator not in LEFT_OUT and not (
        operator.startswith("core/ReplaceComparisonOperator_") and (before in identity) != (after in identity)
    )


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a module can be changed.

    Attributes:
        module: its name, as ``peft.tuners.lora.layer``.
        operator: what changes it.
        occurrence: which of the operator's places it is, from 0, as cosmic-ray counts them.
        line: the line's number, from 1.
        rank: what places are drawn by: a digest of the line's text, so that a change elsewhere draws no others.
    """

    module: str
    operator: str
    occurrence: int
    line: int
    rank: str


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One changed function.

    Attributes:
        module: its module.
        function: its qualified name in it, as ``ParamWrapper.get_delta_weight``.
        operator: what made it.
        source: the whole changed module.
        change: the lines that differ, as a diff shows them. A line that stands several times in its function has a
            number too.
    """

    module: str
    function: str
    operator: str
    source: str
    change: str

    @property
    def name(self) -> str:
        """What it is called in a table and in the list of equivalent ones: no line number, which moves."""
        return f"{self.module} {self.function}: {self.change}"


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


def compiled(source: str, name: str) -> CodeType:
    """Compile a changed source. Python warns of comparisons that nobody would write, which is what these are.

    Raises:
        SyntaxError: the change made no Python of it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return compile(source, name, "exec")


def places_of(module: str, source: str, lines: Collection[int], number: int) -> Iterator[Place]:
    """Yield every place of a module that lies in one of the lines and that an operator can change.

    Args:
        module: its name.
        source: its source.
        lines: the lines, from 1.
        number: the draw's, from 1: each ranks the places in an order of its own.
    """
    salt = "" if number == 1 else f" draw {number}"
    text, tree = source.splitlines(), get_ast(source)
    for name in sorted(filter(_says_something, operator_names())):
        positions = _Positions(get_operator(name)())
        positions.walk(tree)
        alike: Counter[str] = Counter()
        for occurrence, line in enumerate(positions.lines):
            key = f"{module} {name} {text[line - 1].strip()}"
            alike[key] += 1
            if line in lines:
                rank = hashlib.sha256(f"{key} {alike[key]}{salt}".encode()).hexdigest()
                yield Place(module=module, operator=name, occurrence=occurrence, line=line, rank=rank)


def mutant_at(place: Place, source: str, before: Mapping[str, CodeType]) -> Mutant | None:
    """Return the mutant of a place; None where the change is no function's, or is no Python.

    Args:
        place: where, in the module.
        source: the module's source.
        before: its functions.
    """
    mutated = mutate_code(source, get_operator(place.operator)(), place.occurrence)
    if mutated is None or (function := _changed_function(before, mutated, place.module)) is None:
        return None
    change = _change(source, mutated, before[function].co_firstlineno)
    return Mutant(module=place.module, function=function, operator=place.operator, source=mutated, change=change)


def _changed_function(before: Mapping[str, CodeType], source: str, module: str) -> str | None:
    """Return the outermost function whose code a change concerns; None where it is no code, or no function's."""
    try:
        after = functions_of(compiled(source, module))
    except SyntaxError:
        return None
    changed = [name for name in after if name in before and _does(after[name]) != _does(before[name])]
    # A class body is code too, which nobody runs again.
    functions = [name for name in changed if "<" not in name and after[name].co_flags & 1]
    return min(functions, key=len, default=None)


def _does(code: CodeType) -> tuple[object, ...]:
    """Return what code does, without the places in its source: an annotation of a local variable is not in it."""
    constants = tuple(_does(it) if isinstance(it, CodeType) else (type(it), it) for it in code.co_consts)
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_exceptiontable, constants


def _change(before: str, after: str, start: int) -> str:
    """Return the lines that differ: ``- old + new``, and which of the like lines from a function's start it is."""
    old, new = before.splitlines(), after.splitlines()
    lines = difflib.unified_diff(old, new, n=0, lineterm="")
    kept = [line for line in lines if line[:1] in {"-", "+"} and not line.startswith(("---", "+++"))]
    changed = next(number for number, (one, other) in enumerate(zip(old, new, strict=False)) if one != other)
    alike = sum(line.strip() == old[changed].strip() for line in old[start - 1 : changed])
    return " ".join(f"{line[0]} {line[1:].strip()}" for line in kept) + (f" (#{alike + 1})" if alike else "")
