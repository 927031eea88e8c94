# ruff: noqa: D102  # what psutil's methods do is psutil's to say
"""What the processes of a cell use: the same number, whoever else shares their pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from execution_helpers import Recorder, cell, services
from warm_helpers import warm_package

from harness.execution.memory import MIB, footprint_mb
from harness.execution.runner import ProcessOrigin
from harness.execution.scheduler import run_cells
from harness.execution.supervise import Limits


@dataclass
class Process:
    """In place of psutil's: sizes in MiB, and the errors that reading them raises."""

    resident: int
    private: int
    denied: bool = False
    gone: bool = False

    def memory_info(self) -> SimpleNamespace:
        if self.gone:
            raise psutil.NoSuchProcess(1)
        return SimpleNamespace(rss=self.resident * MIB)

    def memory_full_info(self) -> SimpleNamespace:
        if self.denied:
            raise psutil.AccessDenied(1)
        return SimpleNamespace(uss=self.private * MIB)


@pytest.mark.parametrize(
    ("processes", "used"),
    [
        ([], 0),
        ([Process(300, 0)], 300),  # forked: all its pages are its worker's too
        ([Process(300, 300)], 300),
        ([Process(300, 10), Process(400, 110)], 410),  # a stage forked from its cell: 290 in common
        ([Process(100, 100), Process(50, 50, denied=True)], 150),
        ([Process(100, 100), Process(50, 50, denied=True, gone=True), Process(9, 9, gone=True)], 100),
    ],
)
def test_shared_pages_count_once_and_wholly(processes: list[Any], used: int) -> None:
    assert footprint_mb(processes) == used


@pytest.mark.parametrize(("limit", "outcome"), [(250, "oom"), (420, "pass")])
def test_a_limit_means_the_same_for_a_forked_cell(tmp_path: Path, limit: int, outcome: str) -> None:
    """The libraries take 200 MiB and the cell 100 more, which its worker and a process of its own hold alike."""
    held = "    global held\n    held = bytearray(200 * 2**20)\n    held[::4096] = b'x' * len(held[::4096])"
    warm_package(tmp_path, prepare=held)
    limits = Limits(seconds=60, memory_mb=limit, grace=0.3, interval=0.05)
    ways: tuple[ProcessOrigin, ...] = ("warm", "fresh")
    outcomes = [
        run_cells([cell("needs-100-mb")], services(tmp_path, limits=limits), Recorder(), processes=way)
        .results[0]
        .outcome
        for way in ways
    ]

    assert outcomes == [outcome, outcome]
