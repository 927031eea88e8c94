"""What execution needs of other packages, handed in as values: environments, variables, limits, places.

So that another executor, or a test with a worker of three lines, needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.contract.cell_fields import Device
from harness.execution.result_cache import ResultCache
from harness.execution.supervise import Limits
from harness.matrix.cell import Cell, Stack


class PreparedEnvironment(Protocol):
    """What is needed of an environment."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        ...

    @property
    def prefix(self) -> Path:
        """Its directory."""
        ...

    @property
    def lock_sha256(self) -> str | None:
        """The sha256 of its lock, None for an interpreter that is not ours."""
        ...

    @property
    def identity(self) -> str | None:
        """What it holds, as a digest that is the same wherever it lies; None where it is not ours."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Installed versions by package."""
        ...

    @property
    def python_version(self) -> str:
        """The interpreter's version."""
        ...

    @property
    def seconds_resolve(self) -> float | None:
        """Seconds that making the lock took."""
        ...

    @property
    def seconds_install(self) -> float | None:
        """Seconds that making the environment took."""
        ...

    @property
    def note(self) -> str | None:
        """What a user should know of it; None without."""
        ...


class ChildEnvironment(Protocol):
    """Gives the whole environment of a cell's process."""

    def __call__(self, *, scratch: Path, threads: int, device: Device, prefix: Path) -> dict[str, str]:
        """Return the variables.

        Args:
            scratch: a directory of the cell's own, for temporary files and caches of libraries.
            threads: how many threads it may compute with.
            device: ``cpu`` or ``cuda``.
            prefix: the environment it runs in.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class CellSettings:
    """What applies to a cell beside the cell itself.

    Attributes:
        limits: time and memory that the harness enforces.
        bands: the bands the worker holds its values against, JSON values by name.
        threads: how many threads each process of the cell may compute with.
    """

    limits: Limits
    bands: Mapping[str, object]
    threads: int

    @property
    def deciding(self) -> dict[str, object]:
        """What of it decides a result, for its fingerprint.

        The threads do not: they follow --jobs.
        """
        return {
            "bands": dict(self.bands),
            "seconds": self.limits.seconds,
            "memory_mb": self.limits.memory_mb,
        }


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a cell is expected to take, from what it or its like took.

    Attributes:
        seconds: wall clock.
        memory_mb: the largest resident set of any of its processes, MiB.
    """

    seconds: float = 0.0
    memory_mb: float = 0.0


Prepare = Callable[[Stack], PreparedEnvironment]
"""Makes the environment of a stack, or finds it. Called in a thread.

It raises ``harness.envs.Unresolvable``, ``VersionNotFoundError`` or ``EnvironmentFailedError`` where it cannot. That is
an outcome of the stack's cells. Anything else that it raises ends the run.
"""


@dataclass(frozen=True, kw_only=True)
class Services:
    """What the scheduler needs of other packages and of the machine.

    Attributes:
        prepare: makes environments.
        child_environment: gives a child's variables.
        settings: limits, bands and threads of a cell.
        cache: the harness's cache directory; the worker's code goes there.
        out: the output directory.
        scratch: where cells work.
        package: the folder of the package ``harness`` to bundle; None for the one that is running.
        results: where results are kept for later runs; None: nowhere.
        reuse: whether a cell's kept result may stand for it; None: no cell's may.
        identities: what is known beforehand of what environments hold (``PreparedEnvironment.identity``), by the key of
            their stack. A stack of which all results are kept needs no environment then.
        there: the keys of the stacks whose environment is there: cells begin with those.
        urgent: the keys of the stacks whose cells go before all others.
        expected: what a cell is expected to take. It is first asked when it is known that some cell has to run.
    """

    prepare: Prepare
    child_environment: ChildEnvironment
    settings: Callable[[Cell], CellSettings]
    cache: Path
    out: Path
    scratch: Path
    package: Path | None = None
    results: ResultCache | None = None
    reuse: Callable[[Cell], bool] | None = None
    identities: Mapping[str, str] = field(default_factory=dict)
    there: Collection[str] = ()
    urgent: Collection[str] = ()
    expected: Callable[[Cell], Expected] = lambda _: Expected()
