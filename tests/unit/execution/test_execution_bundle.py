"""The worker's code folder: complete, shared, repaired, and blind to everything of the host's."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from execution_helpers import cell, fake_package

from harness.contract.cell_fields import DEFAULTS
from harness.contract.packages import WORKER_PACKAGES
from harness.execution.bundle import bundle_files, digest, publish_bundle
from harness.execution.request import WorkerRequest

HOST_MODULES = (
    "pydantic", "rich", "typer", "psutil", "packaging", "pandas", "jinja2", "filelock", "uv", "rapidfuzz", "tabulate",
    "harness.cli", "harness.envs", "harness.errors", "harness.execution", "harness.matrix", "harness.report",
    "harness.result",
)  # fmt: skip

PROBE = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])  # as the worker does first of all
import harness
found = {}
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ImportError:
        found[name] = False
    else:
        found[name] = True
print(json.dumps({"file": harness.__file__, "found": found}))
"""


def test_no_host_package_can_be_imported_from_inside_the_real_bundle(tmp_path: Path) -> None:
    """In an empty environment, as a cell's, with the worker's part of the real package's folder and no other."""
    bundle = publish_bundle(tmp_path / "cache")
    venv.create(tmp_path / "env", symlinks=True, with_pip=False)
    probe = tmp_path / "probe.py"
    probe.write_text(PROBE)
    command = [str(tmp_path / "env" / "bin" / "python"), "-I", "-u", str(probe), str(bundle.root), *HOST_MODULES]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True, cwd="/").stdout)

    assert Path(answer["file"]) == bundle.root / "harness" / "__init__.py"
    assert answer["found"] == dict.fromkeys(HOST_MODULES, False)
    assert {path.name for path in (bundle.root / "harness").iterdir()} <= {
        "__init__.py",
        "__pycache__",
        *WORKER_PACKAGES,
    }


def test_only_code_templates_and_data_of_the_workers_packages_are_taken(tmp_path: Path) -> None:
    package = fake_package(tmp_path, serving=())
    for name in ("merge/plan.py", "merge/deep/er.py", "worker/chat.jinja", "faults/list.json"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(name)
    for name in ("errors.py", "envs/lock.py", "worker/notes.md", "merge/__pycache__/plan.cpython-311.pyc",
                 "merge/__pycache__/odd.py"):  # fmt: skip
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(name)

    assert list(bundle_files(package)) == [
        "harness/__init__.py",
        "harness/faults/list.json",
        "harness/merge/deep/er.py",
        "harness/merge/plan.py",
        "harness/worker/__init__.py",
        "harness/worker/__main__.py",
        "harness/worker/chat.jinja",
    ]


def test_the_digest_is_over_lengths_names_and_contents() -> None:
    expected = hashlib.sha256(
        b"\0\0\0\0\0\0\0\x01a" + b"\0\0\0\0\0\0\0\x02xy" + b"\0\0\0\0\0\0\0\x01b" + b"\0\0\0\0\0\0\0\0"
    ).hexdigest()

    assert digest({"b": b"", "a": b"xy"}) == expected
    assert len({digest(files) for files in ({"ab": b"c"}, {"a": b"bc"}, {"a": b"", "bc": b""}, {})}) == 4


def test_the_same_code_is_one_folder_and_changed_code_another(tmp_path: Path) -> None:
    package = fake_package(tmp_path)
    first = publish_bundle(tmp_path / "cache", package=package)
    stamp = first.root.stat().st_ino
    same = publish_bundle(tmp_path / "cache", package=package)
    (package / "worker" / "__main__.py").write_text("pass\n")
    other = publish_bundle(tmp_path / "cache", package=package)

    assert same == first
    assert same.root.stat().st_ino == stamp
    assert other.root != first.root
    assert first.root.name == first.sha256
    assert other.main.read_text() == "pass\n"
    assert sorted(path.name for path in (tmp_path / "cache" / "code").iterdir()) == sorted([first.sha256, other.sha256])


@pytest.mark.parametrize("damage", ["edited", "removed", "added", "emptied"])
def test_a_folder_that_is_not_what_its_name_says_is_made_again(tmp_path: Path, damage: str) -> None:
    package = fake_package(tmp_path)
    bundle = publish_bundle(tmp_path / "cache", package=package)
    if damage == "edited":
        bundle.main.write_text("raise SystemExit(0)\n")
    elif damage == "removed":
        bundle.main.unlink()
    elif damage == "added":
        (bundle.root / "pydantic.py").write_text("")
    else:
        for path in [path for path in bundle.root.rglob("*") if path.is_file()]:
            path.unlink()
    again = publish_bundle(tmp_path / "cache", package=package)

    assert again == bundle
    assert again.main.read_bytes() == (package / "worker" / "__main__.py").read_bytes()
    assert not (bundle.root / "pydantic.py").exists()
    assert [path.name for path in (tmp_path / "cache" / "code").iterdir()] == [bundle.sha256]


def test_byte_code_beside_the_sources_is_no_damage(tmp_path: Path) -> None:
    package = fake_package(tmp_path, worker="import harness\n")
    bundle = publish_bundle(tmp_path / "cache", package=package)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import harness.worker"
    subprocess.run([sys.executable, "-I", "-c", code, str(bundle.root)], check=True)
    written = list(bundle.root.rglob("*.pyc"))
    publish_bundle(tmp_path / "cache", package=package)

    assert written
    assert all(path.exists() for path in written)


def test_many_at_once_make_one_folder(tmp_path: Path) -> None:
    package = fake_package(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        bundles = list(threads.map(lambda _: publish_bundle(tmp_path / "cache", package=package), range(32)))

    assert len(set(bundles)) == 1
    assert [path.name for path in (tmp_path / "cache" / "code").iterdir()] == [bundles[0].sha256]


def test_a_request_says_what_the_worker_is_promised(tmp_path: Path) -> None:
    one = cell("lora", geometry="square-down", fault="b-packing", seed=7)
    request = WorkerRequest(cell=one, work=tmp_path, bands={"kl_max": 1e-9}, threads=2)

    assert json.loads(request.write().read_text()) == {
        "cell": {
            **DEFAULTS,
            "family": "qwen3_moe",
            "recipe": "lora",
            "geometry": "square-down",
            "fault": "b-packing",
            "seed": 7,
        },
        "work": str(tmp_path),
        "observation": str(tmp_path / "observation.json"),
        "bands": {"kl_max": 1e-9},
        "threads": 2,
        "processes": "forked",
    }
