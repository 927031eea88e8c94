"""Sessions: what can be asked of this repository, each one command. ``nox --list`` shows them.

Sessions are thin: they make an environment from a hashed lock and call the program that does the work. Package indexes
are those that pip or uv already know here (``harness/envs/indexes.py``, standard library only, loaded by path).
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import nox

ROOT = Path(__file__).parent
LOCKS = ROOT / "requirements"
PATIENCE = 60
"""Seconds that a run may take to end its children and write its partial report; nox's own default is a blink."""

UNTIL_TERMINATED = 10
"""Seconds after which an interrupted nox passes the interrupt on. A terminal's Ctrl-C reaches the run by itself within
two seconds; a signal to nox alone (a CI system that cancels) does not."""

GENERATORS = (
    "harness.matrix.schema",
    "harness.matrix.published",
    "harness.cli.reference",
    "harness.cli.folder_tables",
    "harness.report.contract_tables",
    "harness.bench.readme",
)
"""Modules that write files from what the code says (``--write``), or say which are stale (``--check``)."""

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lint", "tests"]
nox.options.reuse_venv = "yes"


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


INDEXES = _load("indexes", ROOT / "harness" / "envs" / "indexes.py").read_index_settings()
CONFIG = tomllib.loads((ROOT / "matrix.toml").read_text(encoding="utf-8"))
TORCH = CONFIG["pins"]["torch"]
STACKS = [f"tf{stack['transformers']}-peft{stack['peft']}-trl{stack['trl']}" for stack in CONFIG["stacks"]]


def _install(session: nox.Session, *groups: str, torch: bool = False) -> None:
    """Install the locks of some groups (each with the program's own dependencies), then torch, then the project."""
    session.env.update(INDEXES.environment)
    locks = [word for group in groups or ("host",) for word in ("-r", str(LOCKS / f"{group}.txt"))]
    session.install("--require-hashes", *INDEXES.options, *locks)
    if torch:
        session.install(*INDEXES.options, f"torch=={TORCH}")
        session.run("python", "-c", _CPU_BUILD, silent=True)
    session.install("--no-deps", "--no-build-isolation", "--editable", ".")


_CPU_BUILD = (
    "import importlib.metadata as m; v = m.version('torch'); "
    "assert '+cpu' in v, f'torch {v} is not a CPU build: offer one through a find-links folder or an index (README)'"
)


def _harness(session: nox.Session, *arguments: str) -> None:
    """Run the program; its exit code becomes the session's (nox returns 1 for any failure)."""
    session.run("harness", *arguments, interrupt_timeout=UNTIL_TERMINATED, terminate_timeout=PATIENCE)


@nox.session
def tests(session: nox.Session) -> None:
    """The whole test suite, real stacks included, a worker for each core; ``nox -s tests -- tests/unit`` is quick."""
    _install(session, "tests", torch=True)
    session.run("pytest", *(session.posargs or ["--cov", "--cov-report=term:skip-covered", "tests"]))


@nox.session(default=False)
def tests_nightly(session: nox.Session) -> None:
    """The tests that are left to the night: every family merged, real merges audited, 100,000 hostile inputs."""
    _install(session, "tests", torch=True)
    session.run("pytest", "-m", "nightly", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint: ruff (check and format), mypy strict, and the generated files that must be up to date."""
    _install(session, "tests", "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    for module in GENERATORS:
        session.run("python", "-m", module, "--check")


@nox.session(default=False)
def generate(session: nox.Session) -> None:
    """Write every generated file anew: JSON Schemas, the page of the command line, tables, README's goals."""
    _install(session)
    for module in GENERATORS:
        session.run("python", "-m", module, "--write")


@nox.session
def matrix(session: nox.Session) -> None:
    """The default profile over every stack: one scheduler, one table. Options of ``harness matrix`` after ``--``."""
    _install(session)
    _harness(session, "matrix", *session.posargs)


@nox.session(default=False)
@nox.parametrize("stack", [nox.param(stack, id=stack) for stack in STACKS])
def stack(session: nox.Session, stack: str) -> None:
    """The default profile's cells of one stack, ``nox -s "stack(<id>)"``."""
    _install(session)
    _harness(session, "matrix", "--stack", stack, *session.posargs)


@nox.session(default=False)
def harness(session: nox.Session) -> None:
    """Any command of the program: ``nox -s harness -- run --model qwen3_moe --peft 0.19.1``."""
    _install(session)
    _harness(session, *session.posargs)


@nox.session(default=False)
def report(session: nox.Session) -> None:
    """The report of finished results; ``nox -s report -- results --out reports/default``."""
    _install(session)
    _harness(session, "report", *(session.posargs or ["results", "--out", "results"]))


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Plant every known fault and see that it is noticed: some twenty minutes; ``-- --publish reports/faults``."""
    _install(session)
    _harness(session, "faults", *session.posargs)


@nox.session(default=False)
def mutants(session: nox.Session) -> None:
    """Mutants of PEFT's and the engine's code, each asked of cells, and the engine's of its tests: an hour or two."""
    _install(session, "tests", "mutants", torch=True)
    session.run("python", "tests/mutation/run_mutants.py", *session.posargs)


@nox.session(default=False)
def browser(session: nox.Session) -> None:
    """The report's page in a real Chromium, which must be installed."""
    _install(session, "tests", "browser")
    session.run("pytest", "tests/browser", *session.posargs, env={"HARNESS_BROWSER": "1"})


@nox.session(default=False)
def ray(session: nox.Session) -> None:
    """Cells on a real Ray cluster of two nodes on this machine, one of which is killed: some five minutes."""
    _install(session, "tests", "ray")
    session.run("pytest", "-n0", "tests/cluster", *session.posargs, env={"HARNESS_CLUSTER": "1"})


_SEES_A_GPU = (
    "import torch, transformers, peft, trl, bitsandbytes, harness.cli; print('yes' * torch.cuda.is_available())"
)


def _python_of(words: Sequence[str]) -> list[str]:
    """Return the interpreter that ``--python`` names, or this one, and then every other word."""
    rest = [part for word in words for part in (word.split("=", 1) if word.startswith("--python=") else [word])]
    if rest[:1] == ["--python"] and len(rest) > 1:
        return rest[1:]
    return [sys.executable, *rest]


@nox.session(default=False, venv_backend="none")
def gpu(session: nox.Session) -> None:
    """Cells and forward paths on a GPU, in the interpreter that runs nox or ``-- --python PATH``: under ten minutes.

    Nothing is installed, because machines with a GPU often reach no index. So the interpreter must hold the harness's
    dependencies, transformers, peft, trl, datasets, bitsandbytes and a torch that sees the GPU. Writes ``reports/gpu``.
    """
    python, *unknown = _python_of(session.posargs)
    if unknown:
        session.error(f"nox -s gpu takes --python PATH and nothing else; given: {shlex.join(session.posargs)}")
    if shutil.which(python) is None:
        session.error(f"--python {python}: there is no such program. Name an interpreter whose torch sees a GPU")
    said = session.run(python, "-W", "ignore", "-c", _SEES_A_GPU, external=True, silent=True, success_codes=[0, 1])
    if str(said).splitlines()[-1:] != ["yes"]:
        session.error(
            f"{python} is not one that can run this: it needs the harness (pip install .), transformers, peft, trl, "
            "datasets, bitsandbytes and a torch that sees a GPU. Name another with: nox -s gpu -- --python PATH"
        )
    harness = (python, "-m", "harness")
    place = ROOT / "reports" / "gpu"
    results = ROOT / "results" / "gpu"
    cells = ("--profile", "gpu", "--device", "cuda", "--python", python)
    patience = {"external": True, "interrupt_timeout": UNTIL_TERMINATED, "terminate_timeout": PATIENCE}
    # A regression is an exit code of 1: the report of it is wanted all the same, and the session fails at its end.
    session.run(*harness, "matrix", *cells, "--out", str(results), success_codes=[0, 1], **patience)
    session.run(*harness, "report", str(results), "--out", str(place), success_codes=[0, 1], **patience)
    bench = ("--only", "experts_gpu", "--python", python, "--out", str(place / "bench"))
    session.run(*harness, "bench", *bench, **patience)
    summary = json.loads((place / "report.json").read_text(encoding="utf-8"))["summary"]
    if summary["colour"] == "red":
        session.error(summary["sentence"])


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure merge engine, audit, expert runtime and warm workers beside what others do.

    It takes forty minutes in quiet and 40 GB of disk. Options of ``harness bench`` after ``--``: ``--quick`` is a smoke
    run. README shows what it left in reports/bench.
    """
    _install(session, "bench", torch=True)
    _harness(session, "bench", *session.posargs)
    if not session.posargs:
        _harness(
            session, "bench", "--only", "cells", "--only", "stage_time", "--only", "reuse", "--out", "reports/cells"
        )
    session.run("python", "-m", "harness.bench.readme", "--write")


@nox.session(default=False)
def lock(session: nox.Session) -> None:
    """Compile the hashed locks under requirements/ anew."""
    session.env.update(INDEXES.environment)
    session.install(*INDEXES.options, "uv")
    common = [
        "--generate-hashes",
        "--no-header",
        "--no-annotate",
        "--universal",
        "--python-version",
        "3.11",
        "--upgrade",
    ]
    compile_ = ["uv", "pip", "compile", *common, *INDEXES.options, "pyproject.toml", "--group", "build"]
    LOCKS.mkdir(exist_ok=True)
    session.run(*compile_, "-o", str(LOCKS / "host.txt"), silent=True)
    constraint = ["--constraints", str(LOCKS / "host.txt")]
    for group in ("tests", "lint", "bench", "browser", "mutants"):
        session.run(*compile_, *constraint, "--group", group, "-o", str(LOCKS / f"{group}.txt"), silent=True)
    session.run(*compile_, *constraint, "--extra", "ray", "-o", str(LOCKS / "ray.txt"), silent=True)
