"""The engine's own tests, a second jury: a cell has no hostile input, no interrupted merge, no report of memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from make_mutants import Mutant

ROOT = Path(__file__).parents[2]
TESTS = ("tests/unit/merge",)
FIRST = "test_merge_boundaries.py"
SECONDS = 1800.0
"""What they may take on a busy core; on a free one they take three minutes. A mutant that hangs them is noticed."""


class EngineTests:
    """A copy of the repository, in which one module at a time is changed."""

    def __init__(self, scratch: Path, python: str, tests: Sequence[str]) -> None:
        self._python = python
        self._tests = tests
        self._copy = scratch / "engine-tests"
        ignored = shutil.ignore_patterns(".*", "results", "reports", "__pycache__")
        shutil.copytree(ROOT, self._copy, ignore=ignored)
        # Compiled once, and checked by their content: tests start the command line hundreds of times, and a mutant may
        # be as large as the original and written in the same second.
        compile_ = [
            python,
            "-m",
            "compileall",
            "-q",
            "--invalidation-mode",
            "checked-hash",
            str(self._copy / "harness"),
        ]
        subprocess.run(compile_, check=True)

    def notice(self, mutant: Mutant | None) -> bool:
        """Return whether a test fails with a mutant in place, or with nothing changed.

        The file that was written after mutants comes first, then those that name the module, the smallest first.

        Raises:
            ValueError: they cannot be run: no test was found, or pytest itself failed.
        """
        if mutant is None:
            return self._fail(self._tests)
        path = self._copy / f"{mutant.module.replace('.', '/')}.py"
        before = path.read_bytes()
        path.write_text(mutant.source, encoding="utf-8")
        try:
            return self._fail(self._ordered(mutant.module))
        finally:
            path.write_bytes(before)

    def _ordered(self, module: str) -> list[str]:
        found = [self._copy / name for name in self._tests]
        files = [file for path in found for file in (path.rglob("test_*.py") if path.is_dir() else (path,))]
        texts = {file: file.read_text(encoding="utf-8") for file in files}
        return sorted(
            map(str, texts),
            key=lambda name: (not name.endswith(FIRST), module not in texts[Path(name)], len(texts[Path(name)])),
        )

    def _fail(self, tests: Sequence[str]) -> bool:
        command = [self._python, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTHONPATH": str(self._copy)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        try:
            done = subprocess.run(
                command, cwd=self._copy, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return True
        # 2: a module cannot be imported any more, which ends the collection.
        if done.returncode not in {0, 1, 2}:
            raise ValueError(f"pytest ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode != 0
