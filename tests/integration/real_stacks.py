"""Real stacks, run once for all tests of a session, by the very command that a user types.

The cells stand in the nightly profile. They cover each layout of experts and adapters: transformers 4.57 (Linears),
PEFT 0.18 (swapped), PEFT 0.19 (standard), the newest of everything, and the stack whose adapters cannot be reloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import harness as package
from harness.envs import child_environment, ensure_environment
from harness.matrix.catalogue import read_catalogue
from harness.matrix.config import load_config
from harness.matrix.locate import find_config

LINEARS = "tf4.57.6-peft0.19.1-trl0.25.1"
SWAPPED = "tf5.5.0-peft0.18.1-trl0.25.1"
STANDARD = "tf5.5.0-peft0.19.1-trl0.25.1"
NEWEST = "tf5.23.0-peft0.21.2-trl1.16.0"
NO_RELOAD = "tf5.6.2-peft0.19.1-trl1.4.0"

OTHER_ENGINES = tuple(name for name in read_catalogue().engines if name not in {"reference", "peft"})
"""Engines of which no more is asked than of every engine."""

CELLS = (
    *(f"qwen3_moe/lora@{stack}" for stack in (LINEARS, SWAPPED, STANDARD, NEWEST, NO_RELOAD)),
    f"glm4_moe/lora@{LINEARS}",
    f"glm4_moe/lora@{STANDARD}",
    f"deepseek_v3/lora@{SWAPPED}",
    f"deepseek_v3/lora@{NEWEST}",
    f"qwen3_5_moe/lora@{LINEARS}",
    f"qwen3_5_moe/lora@{STANDARD}",
    f"qwen3_5_moe/lora@{STANDARD}+variant=per-expert",
    f"qwen3_5_moe/lora@{NEWEST}+variant=text-prefix",
    f"qwen3_5_moe/lora@{STANDARD}+variant=nested-config",
    *(f"qwen3_moe/lora-experts@{stack}+geometry=square-gate-up" for stack in (SWAPPED, NEWEST)),
    *(f"qwen3_moe/lora-experts@{stack}+geometry=square-down" for stack in (SWAPPED, NEWEST)),
    f"qwen3_moe/lora-down-only@{SWAPPED}+geometry=square-down",
    f"qwen3_moe/lora-gate-up-only@{STANDARD}",
    f"qwen3_moe/lora-experts@{SWAPPED}+geometry=single",
    f"qwen3_moe/lora-experts@{NEWEST}+geometry=single",
    f"qwen3_moe/lora@{NEWEST}+dtype=bf16",
    *(f"{family}/lora@{NEWEST}+engine=peft" for family in ("qwen3_moe", "glm4_moe", "deepseek_v3", "qwen3_5_moe")),
    *(f"{family}/lora@{SWAPPED}+engine=peft" for family in ("qwen3_moe", "qwen3_5_moe")),
    f"qwen3_moe/lora@{NEWEST}+dtype=bf16+engine=peft",
    f"qwen3_moe/qlora4@{NEWEST}+engine=peft+geometry=blocks",
    f"qwen3_moe/lora@{NO_RELOAD}+engine=peft",
    *(f"qwen3_moe/lora@{NEWEST}+engine={name}" for name in OTHER_ENGINES),
)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One finished command with what it left behind."""

    code: int
    output: str
    out: Path

    def result(self, cell_id: str) -> dict[str, Any]:
        """The result file of a cell."""
        family, stem = cell_id.split("/", 1)
        result: dict[str, Any] = json.loads((self.out / "cells" / family / f"{stem}.json").read_text())
        return result

    def work(self, cell_id: str) -> Path:
        """The kept work directory of a cell."""
        return self.out / "work" / cell_id


def harness(
    *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "harness", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of this test run, the same one for all of its workers."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[], Any]) -> Any:
    """What ``make`` returned, as JSON: made by the first worker of this run that asks, waited for by the others."""
    place = shared_folder(factory) / f"{name}.json"
    with FileLock(f"{place}.lock"):
        if not place.exists():
            place.write_text(json.dumps(make()))
        return json.loads(place.read_text())


def ask(stack_id: str, program: Path, cases: list[dict[str, Any]], scratch: Path) -> list[Any]:
    """Run a program of these tests in a stack's environment: a line of JSON for each case in, one out."""
    config = load_config(find_config(), read_catalogue())
    environment = ensure_environment(next(stack for stack in config.declared if stack.id == stack_id))
    done = subprocess.run(
        [environment.python, "-I", str(program), str(Path(package.__file__).parents[1])],
        input="\n".join(json.dumps(case) for case in cases),
        env=child_environment(scratch=scratch, prefix=environment.prefix),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def rows_by_scenario(stack_id: str, program: Path, scratch: Path) -> dict[str, list[dict[str, Any]]]:
    """What a program that takes no cases says on one stack: its rows by scenario, each with the stack."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in ask(stack_id, program, [], scratch):
        found[row["scenario"]].append({**row, "stack": stack_id})
    return found


@pytest.fixture(scope="session")
def matrix_run(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Every cell above, in one run of ``harness matrix``, work directories kept."""
    out = shared_folder(tmp_path_factory) / "matrix"

    def run() -> tuple[int, str]:
        selects = [word for cell in CELLS for word in ("--select", cell)]
        done = harness("matrix", "--profile", "nightly", *selects, "--out", out, "--keep")
        return done.returncode, done.stdout + done.stderr

    code, output = made_once(tmp_path_factory, "matrix-run", run)
    return Ran(code=code, output=output, out=out)
