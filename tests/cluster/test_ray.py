"""``--executor ray`` on two real nodes: results, a driver that is stopped or killed, a node that is lost.

The tests go on with what those before have left, in the order in which they stand: making nodes and environments takes
longest. Each of the two nodes has one core, so that one cell runs on each at a time.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray_cluster import Cluster, Node, cluster_in, wait_until
from same_results import findings

from harness.execution.deadman import TOKEN
from harness.execution.loading import load_found
from harness.execution.result_room import kept_results
from harness.result import CellResult, LostAttempt

ROOT = Path(__file__).resolve().parents[2]
CELLS = ("--select", "qwen3_moe/lora-[abcd]*@tf5.5.0-peft0.19.1-trl0.25.1")
EIGHT = 8
"""Cells that this selects: from lora-attention to lora-dropout."""
MINUTES = 600.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_in(tmp_path_factory.mktemp("cluster")) as made:
        yield made


def driver(cluster: Cluster, out: Path, *, cells: tuple[str, ...] = CELLS) -> subprocess.Popen[str]:
    """Start a run of the cells. Its cache is its own: it has no environment, and keeps the results."""
    command = [sys.executable, "-m", "harness", "matrix", *cells, "--executor", "ray", "--out", str(out)]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "MOE_LORA_HARNESS_CACHE": str(cache(cluster))}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def cache(cluster: Cluster) -> Path:
    return cluster.folder / "cache-driver"


def results(out: Path) -> list[CellResult]:
    """The results that are there, each of which must be whole."""
    return load_found([out]).results if [*out.glob("cells/*/*")] else []


def processes_of_cells(node: Node) -> list[psutil.Process]:
    """The processes of cells, and of what serves them, that run on a node."""
    found = []
    for process in psutil.process_iter():
        try:
            if TOKEN in process.environ() and str(node.scratch) in process.environ().get("TMPDIR", ""):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def finished(run: subprocess.Popen[str]) -> str:
    said, _ = run.communicate(timeout=MINUTES)
    return said


def test_a_driver_that_is_interrupted_while_a_node_makes_an_environment_ends_at_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    run = driver(cluster, tmp_path / "out")
    wait_until(lambda: any(node.environments for node in cluster.nodes), MINUTES)
    began = time.monotonic()
    run.send_signal(signal.SIGINT)
    said = finished(run)

    assert run.returncode == 130, said
    assert time.monotonic() - began < 20
    assert "Traceback" not in said
    wait_until(lambda: not any(map(processes_of_cells, cluster.nodes)), 30)


def test_a_driver_that_is_interrupted_leaves_no_cell_behind(cluster: Cluster, tmp_path: Path) -> None:
    run = driver(cluster, tmp_path / "out")
    wait_until(lambda: bool(cluster.head.cells or cluster.nodes[1].cells), MINUTES)
    run.send_signal(signal.SIGINT)
    said = finished(run)

    assert run.returncode == 130, said
    wait_until(lambda: not any(map(processes_of_cells, cluster.nodes)), 30)
    assert "The same command again does the rest" in said


def test_a_killed_driver_is_gone_on_from_though_a_node_is_lost(
    cluster: Cluster, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    """Nothing is lost, nothing is judged twice, and what the cells come to is what they come to on this machine."""
    out, other = tmp_path / "out", cluster.nodes[1]
    before = len(kept_results(cache(cluster) / "results"))
    killed = driver(cluster, out)
    wait_until(lambda: len(results(out)) >= before + 2, MINUTES)
    killed.kill()
    killed.communicate()
    at_the_kill = {result.cell_id for result in results(out)}
    wait_until(lambda: not any(map(processes_of_cells, cluster.nodes)), 30)

    run = driver(cluster, out)
    wait_until(lambda: len(results(out)) > len(at_the_kill), MINUTES)
    earlier = set(other.cells)  # those of processes that were killed lie there until somebody cleans up
    wait_until(lambda: bool(set(other.cells) - earlier), MINUTES)
    other.kill()
    began = time.monotonic()
    said = finished(run)

    assert run.returncode == 0, said
    found = {result.cell_id: result for result in results(out)}
    assert len(found) == EIGHT
    assert not load_found([out]).planned
    assert {name for name, result in found.items() if result.reused is not None} >= at_the_kill
    lost = [result for result in found.values() if result.lost]
    assert [[attempt.how for attempt in result.lost] for result in lost] == [["node"]]
    assert lost[0].lost[0].node != lost[0].node, "it ran again elsewhere"
    assert f"{lost[0].cell_id} was lost with node {lost[0].lost[0].node}" in said
    assert all(len(node.environments) == 1 for node in cluster.nodes), "made once on each node"
    record_property("seconds after the loss", time.monotonic() - began)
    wait_until(lambda: not processes_of_cells(other), 30)

    again = driver(cluster, tmp_path / "again")
    assert f"{EIGHT} of {EIGHT} results were reused" in finished(again)
    _same_as_here(cluster, tmp_path, out)


def _same_as_here(cluster: Cluster, tmp_path: Path, out: Path) -> None:
    """The local executor keeps under the same keys what it comes to, and comes to the same."""
    here = tmp_path / "here"
    entries = kept_results(cache(cluster) / "results")
    kept = {entry.path.name: json.loads(entry.path.read_text())["result"] for entry in entries}
    one_core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]  # so that it has one thread, as it had there
    command = [*one_core, sys.executable, "-m", "harness", "matrix", *CELLS, "--out", str(here), "--fresh"]
    environment = {**os.environ, "MOE_LORA_HARNESS_CACHE": str(cluster.head.cache)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout
    assert findings(here) == findings(out)
    keys = {entry.path.name for entry in kept_results(cluster.head.cache / "results")}
    assert keys == set(kept), "the same keys, each once"
    assert len(keys) == EIGHT


def test_a_node_that_cannot_make_an_environment_gets_no_further_work(cluster: Cluster, tmp_path: Path) -> None:
    (cluster.folder / "cache-bad").write_text("a file, where its cache should be")
    cluster.add("bad")
    run = driver(cluster, tmp_path / "out", cells=("--select", "qwen3*/lora@tf5.5.0-peft0.19.1-trl0.25.1"))
    said = finished(run)
    found = results(tmp_path / "out")

    assert run.returncode == 0, said
    assert [result.outcome for result in found] == ["pass", "pass"]
    (node,) = {result.node for result in found}
    (bad,) = re.findall(r"node (\w+) gets no further work: the harness's code cannot be written", said)
    assert bad != node
    # None where it was the node that was to make the environment first.
    assert [it for result in found for it in result.lost] in ([], [LostAttempt(node=bad, how="environment")])


def test_without_a_cluster_it_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness", "matrix", *CELLS, "--executor", "ray", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": "127.0.0.1:9"}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "there is no Ray cluster at 127.0.0.1:9" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
