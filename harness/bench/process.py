"""Starting measured processes: the code they run, the moment they begin, and what they said.

They run from a copy of the packages that they import (``PACKAGES``). It is made once, so nothing that is edited
meanwhile gets into a long run. It holds nothing else, so it is safe on the path of somebody else's environment.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
from harness.contract.packages import WORKER_PACKAGES

PACKAGES = ("bench", *WORKER_PACKAGES)
LAST_LINES = 3


class MeasurementError(Exception):
    """A measured process failed; the message is its own last words."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One measured process.

    Attributes:
        seconds: what was timed, imports aside.
        import_seconds: what importing took.
        process_seconds: from start to end, less the time it was kept waiting.
        rss_above: peak resident memory above that before the timed part, bytes.
        rss_before: resident memory after imports, bytes.
        peak_was_reset: whether the kernel let the high-water mark be reset after imports.
        found: what the program returned.
        versions: of the libraries it used.
    """

    seconds: float
    import_seconds: float
    process_seconds: float
    rss_above: int
    rss_before: int
    peak_was_reset: bool
    found: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers that are kept."""
        return {
            "seconds": round(self.seconds, 4),
            "import_seconds": round(self.import_seconds, 3),
            "process_seconds": round(self.process_seconds, 3),
            "rss_above": self.rss_above,
            "rss_before": self.rss_before,
            "peak_was_reset": self.peak_was_reset,
        }


def copy_code(folder: Path) -> str:
    """Copy what measured processes import below ``folder``, anew; return the sha256 of it."""
    package = Path(harness.__file__).parent
    shutil.rmtree(folder, ignore_errors=True)
    sha = hashlib.sha256()
    sources = [package / "__init__.py", *(path for name in PACKAGES for path in sorted((package / name).rglob("*.py")))]
    for source in sources:
        relative = source.relative_to(package.parent)
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        sha.update(relative.as_posix().encode() + b"\0" + hashlib.sha256(source.read_bytes()).digest())
    return sha.hexdigest()


def run_measured(
    python: Path,
    code: Path,
    module: str,
    request: Mapping[str, object],
    *,
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    before: Callable[[], None],
    limit: float,
) -> Ran:
    """Run ``module`` in a process of its own.

    Args:
        python: the interpreter.
        code: where ``copy_code`` put it.
        module: what has ``load`` and ``run``.
        request: given to ``run``.
        environment: all variables of the process.
        folder: its current directory; some libraries write there.
        log: receives its standard error; replaced.
        before: called when everything is imported, just before the timed part.
        limit: seconds after which it is stopped.

    Raises:
        MeasurementError: it failed or was stopped.
    """
    command = [str(python), "-I", "-u", str(code / "harness" / "bench" / "measured.py"), module, json.dumps(request)]
    started = time.perf_counter()
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
            env=dict(environment),
        ) as process,
    ):
        assert process.stdin is not None  # noqa: S101 - Popen was asked for pipes
        assert process.stdout is not None  # noqa: S101 - as above
        try:
            ready = _event(process.stdout.readline(), log)
            paused = time.perf_counter()
            before()
            waited = time.perf_counter() - paused
            said, _ = process.communicate("go\n", timeout=limit)
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(f"no end after {limit:g} s") from error
        finally:
            process.kill()
    whole = time.perf_counter() - started - waited
    done = _event(said, log)
    return Ran(
        seconds=done["seconds"],
        import_seconds=ready["import_seconds"],
        process_seconds=whole,
        rss_above=done["rss_above"],
        rss_before=done["rss_before"],
        peak_was_reset=done["peak_was_reset"],
        found=done["found"] or {},
        versions=ready["versions"] or {},
    )


def _event(line: str, log: Path) -> dict[str, Any]:
    """Return what a line says.

    Raises:
        MeasurementError: it says that the process failed, or nothing at all.
    """
    if not line.strip():
        last = log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
        raise MeasurementError("died without a word: " + " / ".join(last))
    said: dict[str, Any] = json.loads(line)
    if said["event"] == "failed":
        raise MeasurementError(said["reason"])
    return said
