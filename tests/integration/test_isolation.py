"""Inside a cell there is the stack and the worker, nothing of the host, and no network."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from real_stacks import STANDARD

from harness.envs import cache_dir, child_environment, ensure_environment
from harness.envs.environment import Environment
from harness.execution.bundle import publish_bundle
from harness.matrix.catalogue import read_catalogue
from harness.matrix.config import load_config
from harness.matrix.locate import find_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def environment() -> Environment:
    config = load_config(find_config(), read_catalogue())
    return ensure_environment(next(stack for stack in config.declared if stack.id == STANDARD))


def _inside(environment: Environment, scratch: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code as a worker runs: isolated, with the worker's folder first on the path and its variables."""
    bundle = publish_bundle(cache_dir())
    return subprocess.run(
        [environment.python, "-I", "-c", f"import sys; sys.path.insert(0, {str(bundle.root)!r})\n{code}"],
        env=child_environment(scratch=scratch, prefix=environment.prefix),
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "module",
    [
        "rapidfuzz",
        "junitparser",
        "harness.matrix",
        "harness.envs",
        "harness.execution",
        "harness.report",
        "harness.cli",
    ],
)
def test_no_host_package_can_be_imported(environment: Environment, tmp_path: Path, module: str) -> None:
    done = _inside(environment, tmp_path, f"import {module}")

    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def test_the_worker_s_own_packages_can(environment: Environment, tmp_path: Path) -> None:
    done = _inside(environment, tmp_path, "import harness.worker.cell, harness.merge, torch, transformers, peft, trl")

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "attempt",
    [
        "import urllib.request; urllib.request.urlopen('http://192.0.2.1/')",
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)",
        "import socket; socket.getaddrinfo('example.invalid', 80)",
    ],
)
def test_a_network_touch_is_an_error(environment: Environment, tmp_path: Path, attempt: str) -> None:
    """192.0.2.0/24 and .invalid are reserved for documentation and tests: nothing is there, and nothing is asked."""
    done = _inside(
        environment, tmp_path, f"from harness.worker.offline import forbid_network; forbid_network()\n{attempt}"
    )

    assert done.returncode == 1
    assert "NetworkTouchedError" in done.stderr


def test_the_model_hub_is_offline(environment: Environment, tmp_path: Path) -> None:
    done = _inside(
        environment, tmp_path, "from huggingface_hub import hf_hub_download; hf_hub_download('org/name', 'config.json')"
    )

    assert done.returncode == 1
    assert "offline" in done.stderr.lower()
