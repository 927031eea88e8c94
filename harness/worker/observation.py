"""What a cell has seen so far, kept on disk after every stage.

Each stage runs in a forked child, or a group of stages in a process that is started. Whichever it is shares the file
with its parent: it loads the record, adds its stages and writes it back. So a process that dies by a signal leaves
behind exactly what was known until then, and which stage was running.
The field names are those of the result contract (``harness.result.CellResult`` on the host). A stage's entry says how
it ended. What that amounts to is the host's to decide.
"""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.contract.checks import CONTROL, find
from harness.contract.outcomes import Ended
from harness.contract.stages import StageName
from harness.worker.blame import describe


class StageStoppedError(Exception):
    """A stage ended without a usable result; what depends on it is not run. The stage's entry says why."""


class TornRecordError(Exception):
    """The file holds no record: whatever wrote there last was no stage, or died over it."""


class UnsupportedError(Exception):
    """The stack itself says that it has no such family or feature; the message is the library's own."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a check says of a measurement.

    Attributes:
        value: what was measured.
        band: what it is held against, as a person reads it.
        passed: whether it lies within.
        detail: what is off, by name, where it does not.
    """

    value: float | str | None
    band: str
    passed: bool
    detail: str | None = None


class Observation:
    """The growing record of one cell, or of a merge in it that is broken on purpose and must be rejected."""

    def __init__(self, path: Path, data: dict[str, Any] | None = None, *, broken: bool = False) -> None:
        self.path = path
        self._broken = broken
        self.data: dict[str, Any] = data or {"stages": {}, "checks": [], "metrics": {}, "timings": {}, "running": None}

    @classmethod
    def load(cls, path: Path) -> Observation:
        """Read the file that another process of this cell wrote last.

        Raises:
            TornRecordError: it holds no record.
        """
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise TornRecordError(f"the record of the stages cannot be read: {error}") from error
        if not isinstance(data, dict) or not {"stages", "checks", "running"} <= data.keys():
            raise TornRecordError("the record of the stages is none")
        return cls(path, data)

    def save(self) -> None:
        """Write the file in one step: a reader sees the old record or the new one."""
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.data, indent=1, sort_keys=True, allow_nan=True))
        temporary.replace(self.path)

    @contextmanager
    def stage(self, name: StageName) -> Iterator[None]:
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
            self.close(name, "unsupported", start=start, reason=str(error))
            raise StageStoppedError(name) from error
        except Exception as error:
            # The one place that catches everything: what a library under test raises is the observation itself.
            traceback.print_exc()
            self.close(name, "raised", start=start, reason=describe(error))
            raise StageStoppedError(name) from error
        self.close(name, "completed", start=start)

    def check(
        self,
        name: str,
        stage: StageName,
        value: float | str | None,
        band: str,
        *,
        passed: bool,
        detail: str | None = None,
    ) -> None:
        """Record one check. ``detail`` says what was off, by name.

        Raises:
            KeyError: the contract has no such check in that stage.
        """
        find(name, stage)
        entry = {"name": name, "stage": stage, "value": value, "band": band, "passed": bool(passed)}
        self.data["checks"].append({**entry, "detail": None if passed else detail})
        if self._broken:
            print(f"        {name}: {value} ({band}) {'in its band' if passed else 'noticed'}", flush=True)
        else:
            print(f"    check {name}: {value} ({band}) {'ok' if passed else 'FAILED'}", flush=True)

    def judge(self, name: str, stage: StageName, judgement: Judgement, *, control: Judgement) -> None:
        """Record a check, and its control: the same judgement of an altered measurement, which must not pass.

        In a merge that is broken on purpose the check is recorded alone.

        Raises:
            KeyError: the contract has no such check in that stage, or no control of it.
        """
        self.check(name, stage, judgement.value, judgement.band, passed=judgement.passed, detail=judgement.detail)
        if self._broken:
            return
        value = control.value
        if isinstance(value, float) and not math.isfinite(value):
            value = None  # it lies in no band, which is what a control is for
        self.check(
            f"{CONTROL}{name}",
            stage,
            value,
            f"not {control.band}",
            passed=not control.passed,
            detail=f"{name} is blind to it: {find(name, stage).control}",
        )

    def close(
        self,
        name: StageName,
        ended: Ended,
        *,
        start: float | None = None,
        reason: str | None = None,
        signal: int | None = None,
    ) -> None:
        """Record how a stage ended, and that none is running.

        Args:
            name: the stage.
            ended: the way it ended.
            start: when it began, by ``time.perf_counter``; None when that is not known.
            reason: why it did not complete.
            signal: the signal that its process died by.
        """
        seconds = None if start is None else round(time.perf_counter() - start, 3)
        self.data["stages"][name] = {"ended": ended, "seconds": seconds, "reason": reason, "signal": signal}
        self.data["running"] = None
        self.save()
        took = "" if seconds is None else f" in {seconds:.1f} s"
        print(f"=== stage {name}: {ended}{took}{f': {reason}' if reason else ''}", flush=True)

    def completed(self, name: StageName) -> bool:
        """Whether a stage has come to its end, whatever its checks say."""
        return bool(self.data["stages"].get(name, {}).get("ended") == "completed")
