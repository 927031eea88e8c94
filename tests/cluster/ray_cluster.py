"""A Ray cluster of processes of this machine: nodes are started and killed as a test wants."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")
TIMES = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}
"""A dead node is one after some seconds and not after half a minute."""
STARTS = 3
"""Ray gives up a node that is not there after 30 seconds, which a busy machine needs for it."""


class Node:
    """One node: ``ray start --block``, which leads a session of its own, in a directory of its own."""

    def __init__(self, folder: Path, name: str, *arguments: str, temporary: Path) -> None:
        self.cache = folder / f"cache-{name}"
        self.scratch = folder / f"tmp-{name}"
        self.scratch.mkdir(exist_ok=True)
        self.log = folder / f"{name}.log"
        command = [
            RAY, "start", "--block", "--disable-usage-stats", "--num-cpus=1", "--num-gpus=0",
            f"--memory={4 * 2**30}", f"--object-store-memory={100 * 2**20}", f"--temp-dir={temporary}", *arguments,
        ]  # fmt: skip
        environment = {
            **os.environ, **TIMES, "MOE_LORA_HARNESS_CACHE": str(self.cache), "TMPDIR": str(self.scratch),
        }  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def is_there(self) -> bool:
        """Whether it has joined the cluster."""
        return "Ray runtime started" in self.log.read_text()

    @property
    def environments(self) -> list[Path]:
        """The environments that were made on this node."""
        return sorted((self.cache / "environments").glob("*"))

    @property
    def cells(self) -> list[Path]:
        """The work directories of the cells that run there."""
        return sorted(self.scratch.glob("moe-lora-harness-*/cell-*"))

    def kill(self) -> None:
        """End it at once, as a machine does that loses its power."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Cluster:
    """A head and one other node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Sockets lie below it, and the path of a socket has at most 107 characters.
        self._temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # which is short
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self.nodes: list[Node] = []

    @property
    def head(self) -> Node:
        """The node that was started first."""
        return self.nodes[0]

    def add(self, name: str) -> None:
        """Start another node, the head if there is none, and wait until it is there."""
        head = ("--head", f"--port={self._port}", "--include-dashboard=false")
        how = (f"--address={self.address}",) if self.nodes else head
        for attempt in range(STARTS):
            node = Node(self.folder, name, *how, temporary=self._temporary)
            self.nodes[len(self.nodes) - bool(attempt) :] = [node]
            wait_until(lambda node=node: node.is_there or node.process.poll() is not None, 120, node.log)
            if node.is_there:
                return
            node.kill()
        raise TimeoutError(f"{name} did not start:\n{node.log.read_text()[-2000:]}")

    def close(self) -> None:
        """End all nodes."""
        for node in reversed(self.nodes):
            node.kill()
        shutil.rmtree(self._temporary, ignore_errors=True)


@contextmanager
def cluster_in(folder: Path) -> Iterator[Cluster]:
    """Give a cluster of two nodes, with one core each in Ray's books."""
    cluster = Cluster(folder)
    try:
        cluster.add("head")
        cluster.add("other")
        yield cluster
    finally:
        cluster.close()


def wait_until(condition: Callable[[], bool], seconds: float, log: Path | None = None) -> None:
    """Wait for something.

    Raises:
        TimeoutError: it did not come.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s" + (f":\n{log.read_text()[-2000:]}" if log else ""))
        time.sleep(0.1)
