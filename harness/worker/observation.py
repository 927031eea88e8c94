"""What a cell has seen so far, kept on disk after every stage.

Stages run in forked children. Parent and children share the file: a child loads it, adds its stages and writes it back, so
that a child that dies by a signal leaves behind exactly what was known until then, and which stage was running.
The field names are those of the result contract (``harness.result.CellResult`` on the host).
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TRACEBACK_LINES = 3


class StageStoppedError(Exception):
    """A stage ended without a usable result; what depends on it is not run. The stage's entry says why."""


class UnsupportedError(Exception):
    """The stack itself says that it has no such family or feature; the message is the library's own."""


class Observation:
    """The growing record of one cell."""

    def __init__(self, path: Path, data: dict[str, Any] | None = None) -> None:
        self.path = path
        self.data: dict[str, Any] = data or {"stages": {}, "checks": [], "metrics": {}, "timings": {}, "running": None}

    @classmethod
    def load(cls, path: Path) -> Observation:
        """Read the file that another process of this cell wrote last."""
        return cls(path, json.loads(path.read_text()))

    def save(self) -> None:
        """Write the file in one step: a reader sees the old record or the new one."""
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.data, indent=1, sort_keys=True, allow_nan=True))
        temporary.replace(self.path)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Run a stage: its time, its result and, when it raises, its reason.

        Raises:
            StageStoppedError: the stage raised; the cause is recorded, with the place it came from.
        """
        print(f"=== stage {name}", flush=True)
        self.data["running"] = name
        self.save()
        start = time.perf_counter()
        try:
            yield
        except UnsupportedError as error:
            self._close(name, start, "unsupported", str(error))
            raise StageStoppedError(name) from error
        except Exception as error:
            # The one place that catches everything: what a library under test raises is the observation itself.
            traceback.print_exc()
            self._close(name, start, "error", describe(error))
            raise StageStoppedError(name) from error
        self._close(name, start, self._judge(name), self._failed_checks(name))

    def check(
        self, name: str, stage: str, value: float | str | None, band: str, *, passed: bool, detail: str | None = None
    ) -> None:
        """Record one check. ``detail`` says what was off, by name."""
        entry = {"name": name, "stage": stage, "value": value, "band": band, "passed": bool(passed)}
        self.data["checks"].append({**entry, "detail": None if passed else detail})
        print(f"    check {name}: {value} ({band}) {'ok' if passed else 'FAILED'}", flush=True)

    def _close(self, name: str, start: float, result: str, reason: str | None) -> None:
        seconds = round(time.perf_counter() - start, 3)
        self.data["stages"][name] = {"result": result, "seconds": seconds, "reason": reason}
        self.data["running"] = None
        self.save()
        print(f"=== stage {name}: {result} in {seconds:.1f} s{f': {reason}' if reason else ''}", flush=True)

    def _judge(self, name: str) -> str:
        checks = [check for check in self.data["checks"] if check["stage"] == name and not check["passed"]]
        failed = {check["name"] for check in checks}
        merge = self.data.get("merge") or {}
        if name == "compare" and failed:
            if merge.get("attempted") == 0 or merge.get("dropped", 0) == _with_delta(merge) > 0:
                return "noop"
            # Where no position lies clear of a tie every distance is NaN (unequal to itself): nothing was seen to be wrong.
            seen = {check["name"] for check in checks if check["value"] == check["value"]}
            return "blind" if "signal" in failed and seen <= {"signal"} else "fail"
        if name == "controls" and failed:
            return "blind"
        return "fail" if failed else "pass"

    def _failed_checks(self, name: str) -> str | None:
        failed = [check for check in self.data["checks"] if check["stage"] == name and not check["passed"]]
        texts = [
            f"{check['name']}: {check['value']} is not {check['band']}"
            + (f" ({check['detail']})" if check["detail"] else "")
            for check in failed
        ]
        return "; ".join(texts) or None


def describe(error: BaseException) -> str:
    """Return an error as one paragraph: its type, its message, and the last places it passed through."""
    frames = traceback.extract_tb(error.__traceback__)[-TRACEBACK_LINES:]
    places = " < ".join(f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in reversed(frames))
    return f"{type(error).__name__}: {error} [{places}]"


def _with_delta(merge: dict[str, Any]) -> int:
    """On-disk tensors whose delta is neither zero nor lost in the dtype."""
    return int(merge.get("attempted", 0) - merge.get("zero_delta", 0) - merge.get("below_rounding", 0))
