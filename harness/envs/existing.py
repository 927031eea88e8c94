"""Environments that are there although nobody can be asked any more what they would be made of today.

A lock is remembered by the indexes that were asked. When these are gone, or others are named that do not answer, what
was made before for the same requirements is as good as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.contract.cell_fields import Device
from harness.envs.indexes import redact
from harness.envs.interpreter import Interpreter
from harness.envs.layout import CacheLayout
from harness.envs.venv import Record, folder_name, hold, read_record
from harness.matrix.sources import Source

_BACKENDS = (None, "cpu", "auto")
"""How torch may have been fetched (``torch_build``), which is part of an environment's name."""


def existing_record(
    layout: CacheLayout,
    requirements: Sequence[str],
    interpreter: Interpreter,
    *,
    device: Device | None = None,
    marks: Sequence[str] = (),
    sources: Mapping[str, Source] | None = None,
) -> Record | None:
    """Return what is known of the newest complete environment that was made for just these requirements; None without.

    One whose files may have been edited (``link_mode="copy"``) is none.

    Args:
        layout: the cache.
        requirements: what it was asked for.
        interpreter: the Python it must have been made with.
        device: which build of torch; None: any.
        marks: what decides it and stands in no requirement (``Stack.marks``).
        sources: which of the requirements no index has, and what they are built from.
    """
    wanted = tuple(map(redact, sorted(requirements)))
    folders = layout.environments.iterdir() if layout.environments.is_dir() else ()
    found = [record for folder in folders if (record := read_record(folder)) is not None]
    fitting = [
        record
        for record in found
        if record.requirements == wanted
        and record.marks == tuple(marks)
        and (device is None or record.torch in {None, device})
        and record.key in {folder_name(record.lock_sha256, how, interpreter, sources=sources) for how in _BACKENDS}
    ]
    return max(fitting, key=lambda record: record.created, default=None)


def use_existing(layout: CacheLayout, record: Record) -> Path | None:
    """Return the folder of an environment, which counts as in use from now on; None where it has just gone."""
    prefix = layout.environments / record.key
    return prefix if hold(layout, prefix) is not None else None
