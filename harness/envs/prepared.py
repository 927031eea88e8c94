"""Which environments are there already, and what they hold or would hold, without making any."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.contract.cell_fields import Device
from harness.envs.interpreter import Interpreter, find_interpreter
from harness.envs.layout import CacheLayout, cache_dir
from harness.envs.lock import lock_key
from harness.envs.resolution import read_lock
from harness.envs.uv_command import find_uv
from harness.envs.venv import environment_identity, environment_key, read_record
from harness.errors import ConfigurationError, EnvironmentFailedError
from harness.matrix.cell import Stack


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the cache holds for some stacks.

    Attributes:
        there: the stacks whose environment is complete.
        identities: what the environment of each stack holds or would hold (``environment_identity``), by the stack's
            key; a stack whose lock is not cached is not among them.
        seconds_each: what making one took here, as a median over those in the cache; None where there is none.
    """

    there: frozenset[str]
    identities: Mapping[str, str]
    seconds_each: float | None

    def has(self, stack: Stack) -> bool:
        """Say whether a stack's environment is there."""
        return stack.key in self.there


def prepared_environments(stacks: Iterable[Stack], *, device: Device = "cpu", root: Path | None = None) -> Prepared:
    """Return which stacks need no environment to be made: their lock is cached, and what it describes is complete.

    Args:
        stacks: the stacks.
        device: which build of torch.
        root: another cache than the user's.

    Raises:
        EnvironmentFailedError: there is no uv.
    """
    layout = CacheLayout(cache_dir() if root is None else root)
    uv = find_uv(layout.working_folder)
    interpreters: dict[str | None, Interpreter | None] = {}
    there: set[str] = set()
    identities: dict[str, str] = {}
    for stack in stacks:
        if stack.python not in interpreters:
            try:
                interpreters[stack.python] = find_interpreter(uv, stack.python)
            except (EnvironmentFailedError, ConfigurationError):
                interpreters[stack.python] = None  # without that Python nothing of it is ready
        interpreter = interpreters[stack.python]
        if interpreter is None:
            continue
        key = lock_key(
            stack.requirements,
            interpreter_tag=interpreter.tag,
            uv_version=uv.version,
            indexes_digest=uv.indexes.digest,
            device=device,
            marks=stack.marks,
        )
        lock = read_lock(layout, key)
        if lock is None:
            continue
        identities[stack.key] = environment_identity(lock.sha256, interpreter.tag, stack.sources)
        folder = layout.environments / environment_key(lock, interpreter, sources=stack.sources)
        if read_record(folder) is not None:
            there.add(stack.key)
    folders = layout.environments.iterdir() if layout.environments.is_dir() else ()
    times = [record.seconds_install for folder in folders if (record := read_record(folder)) is not None]
    seconds = statistics.median(times) if times else None
    return Prepared(there=frozenset(there), identities=identities, seconds_each=seconds)
