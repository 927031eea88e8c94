"""Cells on a Ray cluster that is there already: each a task that asks for cores, memory and a GPU as Ray's resources.

A task runs ``site`` on its node. It is a generator: it first says which node it is on, then the stages that the cell is
seen in, then what the cell came to. So a result is here as soon as its cell has ended, and of a lost task it is known
where. Ray itself retries nothing: a lost task is handed in again here, and the result says how often and where.

Which node, when and beside whom is Ray's to decide. Kept results are the driver's, under the key that the node gives.
So a driver that was killed goes on from there when it is run anew, and Ray ends what it had left running.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import harness
from harness.contract.cell_fields import Device
from harness.contract.stages import StageName
from harness.counting import counted
from harness.errors import ConfigurationError, EnvironmentFailedError
from harness.execution.machine import MachineKind, machine_kind
from harness.execution.memory import MIB
from harness.execution.room import PROCESSES
from harness.execution.runner import Capacity, Ran, RunContext
from harness.execution.services import CellSettings, PreparedEnvironment
from harness.execution.site import Answer, EnvironmentThere, Failed, Order, Terms, prepare_here, run_here
from harness.matrix.cell import Cell, Stack
from harness.result import LostAttempt

# Read when Ray is imported: a call after the run is over must not start a cluster.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
try:
    import ray
    from ray.exceptions import (
        GetTimeoutError,
        LocalRayletDiedError,
        NodeDiedError,
        ObjectLostError,
        OutOfMemoryError,
        RayError,
        RayTaskError,
        TaskCancelledError,
        WorkerCrashedError,
    )
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ModuleNotFoundError as error:
    raise ConfigurationError(
        f"--executor ray needs Ray, and there is no module {error.name}.",
        remedy="Install the extra here and on every node of the cluster: pip install 'moe-lora-harness[ray]'.",
    ) from None

ADDRESS = "RAY_ADDRESS"
ATTEMPTS = 3
"""So many times a cell is handed in. One that ends its node each time would otherwise end one after the other."""
PATIENCE = 120.0
"""Seconds within which each node must say what it is: longer than it takes to send it the harness's code."""
_TICK = 0.5
_NODE_DIGITS = 12

_LOSSES = (NodeDiedError, WorkerCrashedError, ObjectLostError, OutOfMemoryError, LocalRayletDiedError)

_NODE_LABEL = "ray.io/node-id"
"""The label that Ray gives each node."""

Work = Callable[[Callable[[StageName], None]], Any]
"""What is done on a node; it is given what it tells stages to."""


@dataclass(frozen=True, kw_only=True)
class _Began:
    """The first thing that a task says."""

    node: str


@dataclass(frozen=True, kw_only=True)
class _Done:
    """The last thing that a task says."""

    value: Any


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What work came to, and on which node."""

    node: str
    value: Any


class _LostError(Exception):
    """A task was lost with its place."""

    def __init__(self, attempt: LostAttempt) -> None:
        super().__init__()
        self.attempt = attempt


class RayRunner:
    """Runs cells as tasks of a cluster."""

    def __init__(self, context: RunContext) -> None:
        """Connect to the cluster and ask its nodes what they are.

        Raises:
            ConfigurationError: there is none, or a node cannot run the harness.
        """
        if context.keep:
            raise ConfigurationError(
                "--keep leaves work directories where cells run, and with --executor ray that is on other machines.",
                remedy="Run the cell that you want to look into here: harness run --keep.",
            )
        _connect()
        self._context = context
        self._terms = Terms(
            prepare=context.prepare,
            child_environment=context.child_environment,
            processes=context.processes,
            code_sha256=context.bundle.sha256,
        )
        self._kinds: dict[Device, frozenset[MachineKind]] = {}
        self._closed = threading.Event()
        self._avoided: set[str] = set()

    def prepare(self, stack: Stack) -> PreparedEnvironment:
        """Make the environment of a stack on one of the nodes; the others make theirs when a cell comes."""
        found, _ = self._until_done(
            partial(prepare_here, stack, self._terms),
            lambda: {"num_cpus": min(1.0, _most("CPU"))},
            label=f"the environment of {stack.id}",
            settling=frozenset({"unresolvable", "version"}),
            cancelled=self._closed,
            entered=lambda _: None,
        )
        made: EnvironmentThere = found.value
        return made

    def machines(self, device: Device) -> Collection[MachineKind]:
        """Return what the nodes are that there are now."""
        if device not in self._kinds:
            self._kinds[device] = _kinds_of_nodes(device)
        return self._kinds[device]

    def run(
        self,
        cell: Cell,
        environment: PreparedEnvironment,
        settings: CellSettings,
        *,
        number: int,
        cancelled: threading.Event,
        entered: Callable[[StageName], None],
    ) -> Ran | None:
        """Run one cell on some node, and on another where that is lost; None when it was cancelled."""
        del environment, number  # each node has its own, and numbers its own
        try:
            found, lost = self._until_done(
                partial(run_here, Order(cell=cell, settings=settings, terms=self._terms)),
                lambda: self._wanted(cell, settings),
                label=cell.id,
                settling=frozenset(),
                cancelled=cancelled,
                entered=entered,
            )
        except TaskCancelledError:
            return None
        answer: Answer = found.value
        for note in answer.notes:
            self._context.note(note)
        if answer.log:
            self._context.store.running_log_path(cell).write_bytes(answer.log)
        node = found.node[:_NODE_DIGITS]
        return Ran(result=answer.result.model_copy(update={"node": node, "lost": lost}), key=answer.key)

    def release(self, stack: Stack) -> None:
        """Nothing is kept for a stack here: each node does that for itself."""

    def close(self) -> None:
        """Leave the cluster, which ends whatever of this run is left there."""
        self._closed.set()
        ray.shutdown()

    def _until_done(
        self,
        work: Work,
        wanted: Callable[[], dict[str, Any]],
        *,
        label: str,
        settling: Collection[str],
        cancelled: threading.Event,
        entered: Callable[[StageName], None],
    ) -> tuple[_Found, list[LostAttempt]]:
        """Do some work somewhere, and elsewhere where that is lost; return what it came to, and what was lost.

        A node that cannot make an environment gets no further work: it would take one cell after the other.

        Args:
            work: what to do.
            wanted: what it asks for, of the cluster as it is then.
            label: what a person calls it.
            settling: kinds of failures that are no fault of the node's.
            cancelled: ends it.
            entered: is told of each stage.

        Raises:
            TaskCancelledError: the run was cancelled.
            Unresolvable, VersionNotFoundError: no node could.
            EnvironmentFailedError: it was lost too often, or there is no node left that could.
        """
        lost: list[LostAttempt] = []
        remedy = _LOOK
        while len(lost) < ATTEMPTS and not (self._avoided and self._avoided >= _nodes()):
            try:
                found = self._somewhere(work, wanted(), cancelled=cancelled, entered=entered)
            except _LostError as loss:
                if cancelled.is_set():
                    raise TaskCancelledError from loss
                lost.append(loss.attempt)
                self._context.note(f"{label} was lost with {_place(loss.attempt)}")
                continue
            failed = found.value
            if not isinstance(failed, Failed):
                return found, lost
            if failed.kind in settling:
                raise failed.error()
            self._avoided.add(found.node)
            remedy = failed.remedy or remedy
            lost.append(LostAttempt(node=found.node[:_NODE_DIGITS], how="environment"))
            self._context.note(f"node {found.node[:_NODE_DIGITS]} gets no further work: {failed.message}")
        if not lost:
            raise EnvironmentFailedError("No node is left that can make environments.", remedy=remedy)
        places = ", ".join(map(_place, lost))
        raise EnvironmentFailedError(f"Lost {counted(len(lost), 'time')}, with {places}.", remedy=remedy)

    def _wanted(self, cell: Cell, settings: CellSettings) -> dict[str, float]:
        """Return what a task for a cell asks for, no more of anything than the largest node has."""
        memory = self._context.expected(cell).memory_mb * PROCESSES * MIB
        wanted: dict[str, float] = {
            "num_cpus": min(float(settings.threads), _most("CPU")),
            "memory": int(min(memory, _most("memory"))),
        }
        return wanted | ({"num_gpus": 1.0} if cell.device == "cuda" else {})

    def _somewhere(
        self,
        work: Work,
        wanted: dict[str, Any],
        *,
        cancelled: threading.Event,
        entered: Callable[[StageName], None],
    ) -> _Found:
        """Do some work on a node that has room for it, and wait for what it comes to.

        Raises:
            _LostError: it was lost.
            TaskCancelledError: the run was cancelled.
        """
        if self._avoided:
            wanted = wanted | {"label_selector": {_NODE_LABEL: f"!in({','.join(sorted(self._avoided))})"}}
        said = _task().options(max_retries=0, **wanted).remote(work)
        node: str | None = None
        while True:
            if cancelled.is_set():
                if not self._closed.is_set():
                    ray.cancel(said, force=True)
                raise TaskCancelledError
            ready, _ = ray.wait([said], timeout=_TICK)
            if not ready:
                continue
            try:
                word = ray.get(next(said))
            except _LOSSES as error:
                place = node[:_NODE_DIGITS] if node is not None else _node_in(error)
                raise _LostError(LostAttempt(node=place, how=_how(error))) from error
            match word:
                case _Began(node=number):
                    node = number
                case _Done(value=value):
                    return _Found(node=node or "", value=value)
                case stage:
                    entered(stage)


runner = RayRunner
"""What ``--executor ray`` makes."""

_LOOK = "`ray status` and the logs of the cluster say what became of its nodes."


def capacity(device: Device) -> Capacity:
    """Return what the cluster has now.

    Raises:
        ConfigurationError: there is no cluster, or none of its nodes has a GPU that the cells need.
    """
    _connect()
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if device == "cuda" and not gpus:
        raise ConfigurationError(
            "No node of the Ray cluster has a GPU.",
            remedy="`ray start --num-gpus N` says that one has; without one, leave out --device cuda.",
        )
    return Capacity(cores=max(1, int(resources.get("CPU", 0))), cells=gpus if device == "cuda" else None)


def _connect() -> None:
    """Connect to the cluster that ``RAY_ADDRESS`` names, or that runs on this machine; none is ever started.

    Raises:
        ConfigurationError: there is none.
    """
    if ray.is_initialized():
        return
    address = os.environ.get(ADDRESS, "auto")
    package = Path(harness.__file__).parent
    try:
        _knock(address)
        ray.init(
            address=address,
            # The code of this harness, whatever the nodes have: what they need to have is its dependencies.
            runtime_env={"py_modules": [str(package)], "excludes": ["**/__pycache__"]},
            logging_level="ERROR",
            log_to_driver=False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"--executor ray: there is no Ray cluster at {address}: {str(error).splitlines()[0]}",
            remedy=f"Start one (`ray start --head`, then `ray start --address=HEAD:6379` on the others), or name one "
            f"in {ADDRESS}.",
        ) from error


def _knock(address: str) -> None:
    """See that somebody listens where a head should be: Ray itself waits there without end.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _task() -> Any:
    return ray.remote(_tell)


def _tell(work: Work) -> Iterator[_Began | StageName | _Done]:
    """Do some work on the node that this is called on, and say what there is to say meanwhile."""
    yield _Began(node=ray.get_runtime_context().get_node_id())
    stages: SimpleQueue[StageName] = SimpleQueue()
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(work, stages.put)
        while not (future.done() and stages.empty()):
            try:
                yield stages.get(timeout=_TICK)
            except Empty:
                continue
        yield _Done(value=future.result())


def _kind_here(device: Device) -> MachineKind:
    return machine_kind(device)


def _kinds_of_nodes(device: Device) -> frozenset[MachineKind]:
    """Ask each node what kind of machine it is. One that goes meanwhile is none.

    Raises:
        ConfigurationError: the harness cannot be imported on a node, or it does not answer.
    """
    task = ray.remote(_kind_here)
    answers = {
        node: task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(device)
        for node in (node["NodeID"] for node in ray.nodes() if node["Alive"])
    }
    found: set[MachineKind] = set()
    deadline = time.monotonic() + PATIENCE
    for node, answer in answers.items():
        try:
            found.add(tuple(ray.get(answer, timeout=max(1.0, deadline - time.monotonic()))))
        except _LOSSES:
            continue
        except GetTimeoutError:
            raise ConfigurationError(
                f"Node {node[:_NODE_DIGITS]} of the Ray cluster did not answer within {PATIENCE:.0f} s.", remedy=_LOOK
            ) from None
        except (RayTaskError, RayError) as error:
            raise ConfigurationError(
                f"Node {node[:_NODE_DIGITS]} of the Ray cluster cannot run the harness: {_last_line(error)}",
                remedy="Install the same release with its extra there: pip install 'moe-lora-harness[ray]'.",
            ) from error
    return frozenset(found)


def _nodes() -> set[str]:
    return {str(node["NodeID"]) for node in ray.nodes() if node["Alive"]}


def _most(resource: str) -> float:
    """Return how much of a resource the node has that has the most of it."""
    return max((node["Resources"].get(resource, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)


def _node_in(error: BaseException) -> str | None:
    """Return the node that an error of Ray's names, where it does so before the task has said where it is."""
    words = str(error).partition("node ID: ")[2]
    number = words[:_NODE_DIGITS]
    return number if len(number) == _NODE_DIGITS and number.isalnum() else None


def _how(error: BaseException) -> Any:
    if isinstance(error, OutOfMemoryError):
        return "memory"
    return "process" if isinstance(error, WorkerCrashedError) else "node"


def _place(attempt: LostAttempt) -> str:
    """Return ``node 2297429112c7``, or what else it was lost with."""
    words = {
        "node": "node",
        "process": "its process on node",
        "memory": "memory of node",
        "environment": "its environment on node",
    }
    return f"{words[attempt.how]} {attempt.node or 'that is not known'}"


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
