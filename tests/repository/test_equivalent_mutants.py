"""The list of mutants that nobody could notice: it names lines that are there, of the stack that it was written for."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
MUTATION = ROOT / "tests" / "mutation"
WRITTEN = tomllib.loads((MUTATION / "equivalent.toml").read_text(encoding="utf-8"))
NAME = re.compile(r"(?P<module>[\w.]+) (?P<function>[\w.]+): - (?P<before>.+?) \+ (?P<after>.+?)( \(#\d+\))?")
OURS = [entry["mutant"] for entry in WRITTEN["equivalent"] if entry["mutant"].startswith("harness.")]


def function_source(path: Path, name: str) -> str:
    """Return the source of a function of a module, or of a method of its class."""
    source = path.read_text(encoding="utf-8")
    body = ast.parse(source).body
    for part in name.split(".")[:-1]:
        body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == part)
    last = name.rpartition(".")[2]
    found = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == last)
    return ast.get_source_segment(source, found) or ""


def test_every_mutant_is_named_once_and_has_a_reason_of_its_own() -> None:
    names = [entry["mutant"] for entry in WRITTEN["equivalent"]]

    assert names
    assert len(names) == len(set(names))
    for entry in WRITTEN["equivalent"]:
        assert NAME.fullmatch(entry["mutant"]), entry["mutant"]
        assert len(entry["why"].split()) >= 6, entry["mutant"]


def test_the_list_was_written_for_the_stack_that_mutants_run_on() -> None:
    program = (MUTATION / "run_mutants.py").read_text(encoding="utf-8")

    assert f'STACK = "{WRITTEN["stack"]}"\n' in program


def test_a_mutant_of_ours_changes_a_line_that_is_there() -> None:
    """Those of PEFT are of the release that the stack pins."""
    for mutant in OURS:
        match = NAME.fullmatch(mutant)
        assert match is not None, mutant
        source = function_source(ROOT / (match["module"].replace(".", "/") + ".py"), match["function"])
        # Both what is added and what is removed may hold a ``+``: some way of taking them apart must fit.
        change = mutant.partition(": - ")[2]
        assert any(line.strip() and change.startswith(f"{line.strip()} + ") for line in source.splitlines()), mutant
