"""How many mutants of PEFT's and the engine's code a cell notices: ``nox -s mutants``, some ten minutes on two cores.

Only lines that a cell has run are changed. A mutant is noticed where its cell does not pass. One that is not is looked
at by a person: ``equivalent.toml`` says why it changes nothing that anybody could see, or it is a blind spot.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from make_mutants import Mutant, mutants_of

import harness
from harness.envs import child_environment, ensure_environment
from harness.execution.decision import EndedStage, decide
from harness.execution.observation import parse_observation
from harness.execution.request import WorkerRequest
from harness.matrix.catalogue import read_catalogue
from harness.matrix.cell import Cell
from harness.matrix.config import load_config
from harness.matrix.locate import find_config
from harness.matrix.plan import one_cell
from harness.report.pipe_table import pipe_table
from harness.result import CellResult

HERE = Path(__file__).parent
ROOT = Path(harness.__file__).parents[1]
STACK = "tf5.23.0-peft0.21.2-trl1.16.0"
CELLS: dict[str, dict[str, str]] = {
    "reference": {"family": "qwen3_moe", "recipe": "lora"},
    "peft": {"family": "qwen3_moe", "recipe": "lora", "engine": "peft"},
}
"""A line is changed in the first of these that runs it."""
PEFT = ("peft.tuners.lora.layer", "peft.utils.transformers_weight_conversion")
ENGINE = "harness.merge"
SHARES = {"peft.tuners.lora.layer": 90, "peft.utils.transformers_weight_conversion": 60, ENGINE: 100}
"""How many mutants are drawn of each."""
SECONDS = 60.0
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A mutant and what became of its cell: an outcome, or ``timeout``."""

    mutant: Mutant
    cell: str
    outcome: str

    @property
    def noticed(self) -> bool:
        """Whether the cell did not pass."""
        return self.outcome != "pass"


class Stack:
    """The environment that cells run in, and requests for them."""

    def __init__(self, scratch: Path) -> None:
        catalogue = read_catalogue()
        self._config = load_config(find_config(), catalogue)
        self._stack = next(stack for stack in self._config.declared if stack.id == STACK)
        self._environment = ensure_environment(self._stack)
        self._scratch = scratch
        self.cells = {name: one_cell(catalogue, self._stack, **fields) for name, fields in CELLS.items()}
        prefix = Path(self._environment.prefix)
        self.packages = next(prefix.glob("lib/python*/site-packages"))

    def request(self, cell: Cell, name: str) -> str:
        """Write the request of one more run of a cell; return its path."""
        work = self._scratch / name
        work.mkdir()
        bands = self._config.bands_of(cell.engine, cell.dtype).model_dump()
        return str(WorkerRequest(cell=cell, work=work, bands=bands).write())

    def ask(self, cases: Sequence[dict[str, Any]], name: str) -> Iterator[Any]:
        """Yield a process's answer to each case, as it comes."""
        scratch = self._scratch / f"home-{name}"
        scratch.mkdir()
        with subprocess.Popen(
            [self._environment.python, "-I", str(HERE / "mutant_program.py"), str(ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(scratch=scratch, prefix=self._environment.prefix),
            text=True,
        ) as process:
            if process.stdin is None or process.stdout is None:
                raise ValueError("started without pipes")
            for case in cases:
                process.stdin.write(json.dumps(case) + "\n")
                process.stdin.flush()
                yield json.loads(process.stdout.readline())
            process.stdin.close()

    def file_of(self, module: str) -> Path:
        """Return the source of a module of ours or of the environment's."""
        root = ROOT if module.startswith("harness.") else self.packages
        return root / f"{module.replace('.', '/')}.py"


def targets() -> tuple[str, ...]:
    """Return the modules whose code is changed."""
    ours = sorted((ROOT / "harness" / "merge").rglob("*.py"))
    return (*PEFT, *(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ours))


def lines_run(stack: Stack) -> dict[str, dict[str, set[int]]]:
    """Return cell → module → lines that the cell runs in one of our targets."""
    files = {str(stack.file_of(module)): module for module in targets()}
    cases = [
        {"request": stack.request(cell, f"trace-{name}"), "seconds": 10 * SECONDS, "trace": list(files)}
        for name, cell in stack.cells.items()
    ]
    found: dict[str, dict[str, set[int]]] = {}
    for name, processes in zip(stack.cells, stack.ask(cases, "trace"), strict=True):
        found[name] = defaultdict(set)
        for lines in processes:
            for file, numbers in lines.items():
                found[name][files[file]].update(numbers)
    return found


def draw(stack: Stack) -> list[tuple[str, Mutant]]:
    """Return the mutants to try, each with the cell that runs its line; the same ones each time."""
    run = lines_run(stack)
    drawn: list[tuple[str, Mutant]] = []
    for group, share in SHARES.items():
        found: list[tuple[str, Mutant]] = []
        for module in (name for name in targets() if name == group or name.startswith(f"{group}.")):
            source, known = stack.file_of(module).read_text(), set[int]()
            for cell, modules in run.items():
                lines = modules.get(module, set()) - known
                known |= lines
                found += [(cell, mutant) for mutant in mutants_of(module, source, lines)]
        drawn += random.Random(SEED).sample(found, min(share, len(found)))  # noqa: S311 - a sample, no secret
        print(f"{group}: {min(share, len(found))} of {len(found)} mutants of lines that run", flush=True)
    return drawn


def outcome_of(cell: Cell, observation: Any) -> str:
    """Return the outcome of a cell by the host's own decision."""
    if observation is None:
        return "timeout"
    seen = parse_observation(json.dumps(observation).encode())
    if seen.problem is not None or not seen.done:
        return "error"
    fields = dict(seen.fields)
    ended = {key: EndedStage(**how) for key, how in fields.pop("stages", {}).items()}  # type: ignore[attr-defined]
    try:
        result = CellResult(cell=cell, cell_id=cell.id, outcome="error", **fields)  # type: ignore[arg-type]
    except ValueError:
        return "error"  # what contradicts itself is refused, which is to be noticed
    # The environment is a real one, which nobody has to resolve.
    result = result.model_copy(update={"cell": cell.model_copy(update={"unmanaged": True})})
    return decide(result, ended).outcome


def try_all(stack: Stack, drawn: Sequence[tuple[str, Mutant]]) -> list[Tried]:
    """Run each mutant in its cell, a process for each core."""

    def part(number: int) -> list[Tried]:
        mine = list(enumerate(drawn))[number::workers]
        cases = [
            {
                "request": stack.request(stack.cells[cell], f"mutant-{index}"),
                "seconds": SECONDS,
                "module": mutant.module,
                "function": mutant.function,
                "source": mutant.source,
            }
            for index, (cell, mutant) in mine
        ]
        tried = []
        for (index, (cell, mutant)), said in zip(mine, stack.ask(cases, str(number)), strict=True):
            tried.append(Tried(mutant=mutant, cell=cell, outcome=outcome_of(stack.cells[cell], said)))
            print(f"{index + 1}/{len(drawn)} {tried[-1].outcome:<8} {mutant.name[:150]}", flush=True)
        return tried

    workers = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        return [tried for found in pool.map(part, range(workers)) for tried in found]


def equivalent() -> dict[str, str]:
    """Return mutant → why nobody could see it, by the name in a table."""
    path = HERE / "equivalent.toml"
    return {entry["mutant"]: entry["why"] for entry in tomllib.loads(path.read_text()).get("equivalent", [])}


def table(tried: Sequence[Tried]) -> tuple[str, float]:
    """Return the page, and the share of the mutants that are not equivalent which were noticed."""
    known = equivalent()
    counted = [one for one in tried if one.noticed or one.mutant.name not in known]
    score = sum(one.noticed for one in counted) / len(counted)
    groups = Counter(next(group for group in SHARES if one.mutant.module.startswith(group)) for one in tried)
    lines = []
    for group, count in groups.items():
        mine = [one for one in tried if one.mutant.module.startswith(group)]
        alike = sum(not one.noticed and one.mutant.name in known for one in mine)
        lines.append((f"`{group}`", str(count), str(sum(one.noticed for one in mine)), str(alike)))
    survivors = [
        (f"`{one.mutant.name.replace('|', chr(92) + '|')}`", one.cell, known.get(one.mutant.name, "**not noticed**"))
        for one in tried
        if not one.noticed
    ]
    page = (
        "# Mutants\n\nOne small change each, in a line of code that the cell runs; noticed where the cell does not "
        f"pass. **{score:.1%}** of the {len(counted)} that are not equivalent were noticed.\n\n"
        + pipe_table(("code", "mutants", "noticed", "equivalent"), lines, numeric=(False, True, True, True))
        + "\n\n## Not noticed\n\n"
        + pipe_table(("mutant", "cell", "why nobody could see it"), survivors)
        + "\n"
    )
    return page, score


def main() -> int:
    """Draw, try, write the page; 1 where fewer were noticed than asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/mutants.md"))
    parser.add_argument("--at-least", type=float, default=0.95, help="share that must be noticed")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        stack = Stack(Path(scratch))
        tried = try_all(stack, draw(stack))
    page, score = table(tried)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(page, encoding="utf-8")
    print(f"{score:.1%} noticed; {asked.out}")
    return int(score < asked.at_least)


if __name__ == "__main__":
    raise SystemExit(main())
