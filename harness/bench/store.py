"""What has been measured so far: one JSON file, rewritten after every step, so that an interrupted run can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = "results.json"
IN_PROGRESS = "results.in-progress.json"
SCHEMA = 1


def write(path: Path, value: object) -> None:
    """Write JSON so that the file is there completely or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)  # noqa: PTH105 - pathlib has the same under the name replace


class Store:
    """The steps that are finished, by name, under a heading that says what they were measured with."""

    def __init__(self, folder: Path, heading: Mapping[str, Any], *, resume: bool) -> None:
        """Open the store.

        Args:
            folder: where the file is.
            heading: settings, machine and code; steps of another heading are not taken over.
            resume: whether to take over finished steps at all.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.heading = {**heading, "schema": SCHEMA}
        self.steps: dict[str, Any] = {}
        path = folder / IN_PROGRESS
        if resume and path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["heading"] == json.loads(json.dumps(self.heading)):
                self.steps = kept["steps"]
        self.resumed = tuple(self.steps)

    def keep(self, name: str, value: object) -> None:
        """Keep a finished step."""
        self.steps[name] = value
        write(self._folder / IN_PROGRESS, {"heading": self.heading, "steps": self.steps})

    def finish(self) -> dict[str, Any]:
        """Write the final results and forget those in progress; return them."""
        results = {**self.heading, "resumed": list(self.resumed), "steps": self.steps}
        write(self._folder / RESULTS, results)
        (self._folder / IN_PROGRESS).unlink(missing_ok=True)
        return results
