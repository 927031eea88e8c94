"""A cell, from its request to its observation: which of its steps can run. Each runs in a process of its own.

There are two ways. A process that has imported the libraries and has not used a device is forked for each step. The
fork is as fresh as a new process, without the imports. A process that has started CUDA cannot be forked, nor one that
has threads or has computed. Then processes are started instead, see ``groups``. Some libraries do such things while
they are imported, so that is looked at after the imports.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Protocol

from harness.worker.cell import GROUPS, IMPORT
from harness.worker.checkpoints.family import Checkpoint, build
from harness.worker.checkpoints.geometry import geometry
from harness.worker.groups import MAIN, StartedAhead
from harness.worker.import_order import choose_another
from harness.worker.libraries import cuda_started, import_libraries, preload, try_to_compute
from harness.worker.observation import Observation, StageStoppedError
from harness.worker.processes import peak_rss_mb, run_in_child
from harness.worker.request import Request, read_request
from harness.worker.steps import Step, run_step
from harness.worker.warm import RefusedError, refuse_threads, serve

PACKAGES = (
    "transformers", "peft", "trl", "torch", "bitsandbytes", "accelerate", "datasets", "safetensors", "tokenizers",
    "huggingface-hub", "numpy",
)  # fmt: skip
"""Packages whose versions a result records, where they are installed."""


class Way(Protocol):
    """How steps get processes of their own."""

    def import_libraries(self) -> None:
        """Record the import stage.

        Raises:
            StageStoppedError: it has failed, and with it the cell.
        """
        ...

    @contextmanager
    def group(self, number: int) -> Iterator[Callable[[Step], None]]:
        """Give what runs a step of a group, and records what becomes of it.

        Afterwards the group's processes are gone.
        """
        ...

    def close(self) -> None:
        """End what is left."""
        ...


class Forked:
    """Each step in a child of this process, which imports and does nothing else."""

    def __init__(self, observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
        self._observation = observation
        self._request = request
        self._checkpoint = checkpoint

    def import_libraries(self) -> None:
        """Import here. Where that leaves what cannot be forked, this process begins again and imports nothing.

        Where only another order of imports works, it begins again too, with that.
        """
        try:
            run_step(IMPORT, self._observation, self._request, self._checkpoint)
        except StageStoppedError:
            if (another := choose_another(self._observation, self._request)) is None:
                raise
            print(f"=== again, with {another.import_first} imported first", flush=True)
            os.execv(sys.executable, [sys.executable, "-I", "-u", str(MAIN), str(self._request.file)])  # noqa: S606
        try:
            refuse_unforkable()
        except RefusedError as refused:
            print(f"{refused}: processes are started for stages, not forked", flush=True)
            os.execv(sys.executable, [sys.executable, "-I", "-u", str(MAIN), "--started", str(self._request.file)])  # noqa: S606

    @contextmanager
    def group(self, number: int) -> Iterator[Callable[[Step], None]]:  # noqa: ARG002
        """Fork for each step: a group is only what has to be together where nothing can be forked."""

        def run(step: Step) -> None:
            run_in_child(
                self._observation,
                lambda seen: run_step(step, seen, self._request, self._checkpoint),
                names=step.stages,
            )

        yield run

    def close(self) -> None:
        """Nothing: each child has been waited for."""


def refuse_unforkable() -> None:
    """Look whether children of this process, which has imported the libraries, can run stages.

    Raises:
        RefusedError: they cannot. Its kind is ``cuda`` or ``fork``.
    """
    if cuda_started():
        raise RefusedError("cuda", "the imports have started CUDA, which no forked child could use")
    refuse_threads()
    if not try_to_compute():
        raise RefusedError("fork", "a child forked after the imports does not come to an end when it computes")


def run_cell(request: Request) -> None:
    """Run every stage that can run; never raises for what a stage does."""
    start = time.perf_counter()
    observation = Observation(request.observation)
    observation.data |= {
        "versions": _versions(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": request.threads,
        "device": request.device,
    }
    observation.save()
    checkpoint = build(request.family, geometry(request.geometry), request.variant)
    way: Way = (
        StartedAhead(observation, request)
        if request.processes == "started"
        else Forked(observation, request, checkpoint)
    )
    run_steps(way, observation, GROUPS)
    observation.data["peak_rss_mb"] = peak_rss_mb()
    observation.data["timings"]["worker"] = round(time.perf_counter() - start, 3)
    observation.data["done"] = True
    observation.save()


def run_steps(way: Way, observation: Observation, groups: Sequence[Sequence[Step]]) -> None:
    """Run each step whose needs are met when its turn comes, whatever has become of the others."""
    try:
        way.import_libraries()
        for number, steps in enumerate(groups):
            with way.group(number) as run:
                for step in steps:
                    if step.can_run(observation):
                        run(step)
    except StageStoppedError:
        pass  # only the imports let it out: nothing can run
    finally:
        way.close()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(path: Path, *, started: bool = False) -> None:
    """Run the cell that a request file describes.

    Args:
        path: the request.
        started: start processes for its stages whatever it says, because what the imports leave cannot be forked.
    """
    request = read_request(path)
    os.chdir(request.work)
    run_cell(dataclasses.replace(request, processes="started") if started else request)


def serve_cells(*, device: str, threads: int) -> None:
    """Be a warm worker: import once, then run each cell that is asked for in a child."""

    def prepare() -> None:
        import_libraries(threads=threads, device=device)
        if device == "cpu":  # on a GPU, what is imported ahead could be what starts CUDA
            preload()
        refuse_unforkable()

    serve(prepare, main)
