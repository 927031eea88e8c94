"""How many mutants of PEFT's and the engine's code a cell notices: ``nox -s mutants``, an hour on one core, or more.

Only lines that a cell has run are changed. A mutant is noticed where its cell does not pass. One of the engine that no
cell notices is given to the engine's own tests. What is left is looked at by a person: ``equivalent.toml`` says why it
changes nothing that anybody could see, or what it would do, and then it is a blind spot.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from engine_tests import TESTS, EngineTests
from make_mutants import Mutant, compiled, functions_of, mutant_at, places_of
from mutants_page import Score, Tried, equivalent, page, read_run, write_run
from stack import Stack

ROOT = Path(__file__).parents[2]
STACK = "tf5.23.0-peft0.21.2-trl1.16.0"
CELLS: dict[str, dict[str, str]] = {
    "lora": {"family": "qwen3_moe", "recipe": "lora"},
    "per-expert": {"family": "qwen3_moe", "recipe": "lora-per-expert"},
    "peft": {"family": "qwen3_moe", "recipe": "lora", "engine": "peft"},
    "all-linear": {"family": "qwen3_moe", "recipe": "all-linear"},
    "two-adapters": {"family": "qwen3_moe", "recipe": "lora-two-adapters"},
    "two-expert-adapters": {"family": "qwen3_moe", "recipe": "lora-two-expert-adapters"},
    "single": {"family": "qwen3_moe", "recipe": "lora-experts", "geometry": "single"},
    "patterns": {"family": "qwen3_moe", "recipe": "lora-patterns"},
    "bf16": {"family": "qwen3_moe", "recipe": "lora", "dtype": "bf16"},
    "peft-bf16": {"family": "qwen3_moe", "recipe": "lora", "dtype": "bf16", "engine": "peft"},
    "qwen3_5_moe": {"family": "qwen3_5_moe", "recipe": "lora"},
    "dora": {"family": "qwen3_moe", "recipe": "lora-dora"},
    "qlora4": {"family": "qwen3_moe", "recipe": "qlora4", "geometry": "blocks"},
}
"""A mutant is tried in the first of these that runs its line, and in the others that do where nothing is noticed. One
that is listed as equivalent has been: it is tried in the first alone."""
SECONDS = 60.0
"""What a cell may take. Unchanged it takes three to ten seconds."""
LEAST = 200


@dataclass(frozen=True, kw_only=True)
class Group:
    """Code that mutants are drawn of.

    Attributes:
        title: as the page has it.
        module: the module, or the package with all its modules.
        functions: what the qualified names of the functions begin with.
        share: how many are drawn.
    """

    title: str
    module: str
    functions: tuple[str, ...] = ("",)
    share: int


GROUPS = (
    Group(
        title="PEFT's `ParamWrapper`, and what it puts before a parameter",
        module="peft.tuners.lora.layer",
        functions=("ParamWrapper.", "_LoraFactorsProxy.", "_LoraParameterProxy."),
        share=80,
    ),
    Group(
        title="PEFT's conversion of adapters",
        module="peft.utils.transformers_weight_conversion",
        share=60,
    ),
    Group(title="the reference engine", module="harness.merge", share=110),
)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A mutant to try, and the cells that run its line, in order: name → whether only from the merge on."""

    group: str
    mutant: Mutant
    cells: dict[str, bool]


def modules_of(group: Group) -> Iterator[str]:
    """Yield the modules of a group."""
    package = ROOT / group.module.replace(".", "/")
    if not package.is_dir():
        yield group.module
    for path in sorted(package.rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


def draw(stack: Stack, only: str, number: int) -> list[Drawn]:
    """Return the mutants to try, each with the cells that run its line.

    A draw's are the same ones each time, and a change of other lines draws no others.
    """
    modules = [module for group in GROUPS for module in modules_of(group)]
    run = stack.lines_run(modules, seconds=10 * SECONDS)
    drawn: list[Drawn] = []
    for group in GROUPS:
        sources, functions, places = {}, {}, []
        for module in modules_of(group):
            if not (lines := set[int]().union(*(found.get(module, {}) for found in run.values()))):
                continue
            sources[module] = stack.file_of(module).read_text(encoding="utf-8")
            functions[module] = functions_of(compiled(sources[module], module))
            places += places_of(module, sources[module], lines, number)
        mutants: dict[str, Drawn] = {}
        for place in sorted(places, key=lambda place: place.rank):
            mutant = mutant_at(place, sources[place.module], functions[place.module])
            if mutant is None or not mutant.function.startswith(group.functions):
                continue
            lines_of = {name: found.get(place.module, {}) for name, found in run.items()}
            cells = {name: lines[place.line] for name, lines in lines_of.items() if place.line in lines}
            mutants.setdefault(mutant.name, Drawn(group=group.title, mutant=mutant, cells=cells))
            if len(mutants) == group.share:
                break
        print(f"{group.module}: {len(mutants)} mutants of {len(places)} places in lines that run", flush=True)
        drawn += mutants.values()
    return [one for one in drawn if only in one.mutant.name]


def try_one(stack: Stack, drawn: Drawn, name: str, worker: int, *, known: bool) -> Tried | None:
    """Run a mutant in its cells until one notices it, or a known one in the first; None where it cannot be planted."""
    tried: list[str] = []
    outcome, noticed_by = "pass", None
    mutant = drawn.mutant
    for cell, merged in drawn.cells.items():
        case = {"module": mutant.module, "function": mutant.function, "source": mutant.source, "merged": merged}
        case["seconds"] = SECONDS
        outcome, noticed_by = stack.outcome(cell, case, name=f"{name}-{cell}", worker=worker)
        if outcome == "not planted":
            print(f"not planted: {drawn.mutant.name}: {noticed_by}", flush=True)
            return None
        tried.append(cell)
        if outcome != "pass" or known:
            break
    return Tried(group=drawn.group, mutant=drawn.mutant, cells=tuple(tried), outcome=outcome, noticed_by=noticed_by)


def try_all(stack: Stack, drawn: Sequence[Drawn], jobs: int) -> list[Tried]:
    """Run every mutant, in as many processes as asked for."""
    known = equivalent()

    def part(number: int) -> list[tuple[int, Tried]]:
        done = []
        for index, one in list(enumerate(drawn))[number::jobs]:
            tried = try_one(stack, one, f"mutant-{index}", number, known=one.mutant.name in known)
            if tried is not None:
                done.append((index, tried))
                by = tried.noticed_by or f"not noticed in {', '.join(tried.cells)}"
                print(f"{index + 1}/{len(drawn)} {tried.outcome:<8} {by}: {one.mutant.name}", flush=True)
        return done

    with ThreadPoolExecutor(jobs) as pool:
        found = [tried for results in pool.map(part, range(jobs)) for tried in results]
    return [tried for _, tried in sorted(found, key=lambda item: item[0])]


def commit() -> str:
    """Return the commit of this checkout, and whether something in it is changed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + (" with changes" if git("status", "--porcelain") else "")


def run(asked: argparse.Namespace, before: Mapping[str, Tried]) -> tuple[list[Tried], dict[str, str]]:
    """Draw and try; return what became of the mutants, and what a page says of the run.

    Args:
        asked: the options.
        before: what an earlier run has noticed, by mutant, which is not tried again.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, Stack(Path(scratch), STACK, CELLS, jobs=asked.jobs) as stack:
        stack.refuse_unless_clean(SECONDS)
        drawn = draw(stack, asked.only, asked.draw)
        tried = try_all(stack, [one for one in drawn if one.mutant.name not in before], asked.jobs)
    tried += [before[one.mutant.name] for one in drawn if one.mutant.name in before]
    return tried, {
        "command": "`nox -s mutants" + (f" -- --draw {asked.draw}`" if asked.draw > 1 else "`"),
        "commit": f"`{commit()}`",
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "stack": f"`{STACK}`",
        "cells": ", ".join(f"{name} (`{cell.id.replace(f'@{STACK}', '')}`)" for name, cell in stack.cells.items()),
        "took": f"{(time.monotonic() - start) / 60:.0f} minutes, {asked.jobs} at a time"
        + (f"; {len(before)} noticed by an earlier run were not tried again" if before else ""),
    }


def ask_tests(tried: Sequence[Tried], python: str, tests: Sequence[str]) -> list[Tried]:
    """Give the engine's mutants that no cell notices, and that are not known, to the engine's own tests."""
    known = equivalent()
    open_ = [one for one in tried if not one.noticed and one.mutant.name not in known]
    asked = [one for one in open_ if one.mutant.module.startswith("harness.")]
    found: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as scratch:
        jury = EngineTests(Path(scratch), python, tests)
        if asked and jury.notice(None):
            raise ValueError("the engine's tests fail with nothing changed")
        for one in asked:
            found[one.mutant.name] = jury.notice(one.mutant)
            print(f"{'a test notices' if found[one.mutant.name] else 'NO TEST NOTICES'}: {one.mutant.name}", flush=True)
    return [replace(one, by_tests=found.get(one.mutant.name, one.by_tests)) for one in tried]


def main() -> int:
    """Draw, try, write the page; 1 where fewer were noticed than asked for, or the list of equivalent ones is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/mutants.md"), help="the page; its record lies beside")
    parser.add_argument("--at-least", type=float, default=0.95, help="share that must be noticed")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="cells at a time")
    parser.add_argument("--only", default="", metavar="TEXT", help="try the drawn mutants whose name holds this")
    parser.add_argument("--draw", type=int, default=1, metavar="N", help="another N draws other mutants; the first has "
                        "been looked at, and what it left has got checks, tests or reasons")  # fmt: skip
    parser.add_argument("--again", choices=("page", "tests", "survivors"), help="with what --out has: write the page "
                        "with new reasons, ask the tests too, or try what was not noticed once more first")  # fmt: skip
    parser.add_argument("--python", default=sys.executable, help="what runs the engine's tests")
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="PATH", help="the engine's tests")
    asked = parser.parse_args()
    record = asked.out.with_suffix(".json")
    tried, facts = read_run(record) if asked.again else ([], {})
    if asked.again in {None, "survivors"}:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        tried, facts = run(asked, {one.mutant.name: one for one in tried if one.by_cell})
        write_run(record, tried, facts)
    if asked.again != "page":
        write_run(record, ask_tests(tried, asked.python, asked.tests), facts)
    tried, facts = read_run(record)
    score = Score(tried=tried, known=equivalent(), facts=facts)
    asked.out.write_text(page(score), encoding="utf-8")
    print(f"{score.share:.1%} of {score.counted} noticed, {len(tried)} tried; {asked.out}")
    for name in score.wrongly_known:
        print(f"noticed, and equivalent.toml says that nobody could: {name}", file=sys.stderr)
    few = not asked.only and len(tried) < LEAST
    return int(score.share < asked.at_least or bool(score.wrongly_known) or few)


if __name__ == "__main__":
    raise SystemExit(main())
