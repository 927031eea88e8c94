"""What decides a result: each part alone makes another key, and nothing else does."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from execution_helpers import cell, child_environment
from hypothesis import given
from hypothesis import strategies as st
from reuse_samples import fingerprints

import harness
from harness.contract.cell_fields import MEANINGS
from harness.contract.packages import WORKER_PACKAGES
from harness.envs.venv import environment_identity
from harness.execution import fingerprint
from harness.execution.fingerprint import HOST_CODE
from harness.execution.machine import machine_kind
from harness.matrix.cell import Cell, Stack
from harness.matrix.sources import Source

OTHER: dict[str, Any] = {
    "family": "glm4_moe", "recipe": "qlora4", "geometry": "blocks", "variant": "per-expert", "dtype": "bf16",
    "device": "cuda", "engine": "peft", "seed": 7, "fault": "b-packing",
}  # fmt: skip
"""Of each field of a cell another value."""

ENVIRONMENT = ("lock", "interpreter", "source")
CODE = ("code", "bands", "seconds", "memory")
DECIDES_NOTHING = ("as_of", "pins in the lock", "extra pins", "threads")


def key_of(changed: frozenset[str]) -> str | None:
    """The key of a cell of which these parts are other than usual."""
    plain = cell("lora")
    asked = {name: OTHER[name] for name in changed if name in MEANINGS}
    stack: dict[str, Any] = {}
    if "as_of" in changed:
        stack = {"resolution": "fresh", "as_of": date(2026, 11, 28)}
    if changed & {"pins in the lock", "extra pins"}:
        stack["pins"] = {**plain.stack.pins, "accelerate": "1.15.0"}
    if "extra pins" in changed:
        stack["extra_pins"] = ("accelerate",)
    if "source" in changed:
        stack["sources"] = {"peft": Source(kind="git", digest="1a2b3c4d" * 5)}
    asked["stack"] = Stack.model_validate({**plain.stack.model_dump(), **stack})
    made = fingerprints(
        code="other" if "code" in changed else "c",
        bands={"kl_max": 1e-8} if "bands" in changed else None,
        seconds=61.0 if "seconds" in changed else 60.0,
        memory_mb=512.0 if "memory" in changed else None,
    )
    if "threads" in changed:
        settings = made.settings(plain)
        made = replace(made, settings=lambda _cell: replace(settings, threads=4))
    identity = environment_identity(
        "other" if "lock" in changed else "lock",
        "CPython-3.12.1" if "interpreter" in changed else "CPython-3.11.2",
        asked["stack"].sources,
    )
    return made.of(plain.model_copy(update=asked), identity)


@pytest.mark.parametrize("name", [*MEANINGS, *ENVIRONMENT, *CODE])
def test_each_part_alone_makes_another_key(name: str) -> None:
    assert key_of(frozenset([name])) not in {None, key_of(frozenset())}


def test_every_field_of_a_cell_is_tried() -> None:
    assert OTHER.keys() == MEANINGS.keys()


changes = st.frozensets(st.sampled_from([*MEANINGS, *ENVIRONMENT, *CODE, *DECIDES_NOTHING]))


@given(one=changes, other=changes)
def test_two_cells_share_a_key_exactly_when_all_that_decides_is_the_same(
    one: frozenset[str], other: frozenset[str]
) -> None:
    same = one - set(DECIDES_NOTHING) == other - set(DECIDES_NOTHING)

    assert (key_of(one) == key_of(other)) == same


@given(parts=st.lists(st.text(min_size=1), min_size=2, max_size=2, unique=True))
def test_what_an_environment_holds_has_one_identity(parts: list[str]) -> None:
    one, other = parts

    assert environment_identity(one, "tag") == environment_identity(one, "tag")
    assert environment_identity(one, "tag") != environment_identity(other, "tag")
    assert environment_identity("lock", one) != environment_identity("lock", other)
    assert environment_identity(one, other) != environment_identity(other, one)


def test_only_what_is_built_from_a_tree_has_no_key() -> None:
    """A tree is what somebody is working on; a commit and a wheel are what they are."""
    plain, keys = cell(), set()
    for kind in ("git", "wheel", "path"):
        source = Source(kind=kind, digest="1a2b3c4d" * 5)  # type: ignore[arg-type]  # a literal
        stack = plain.stack.model_copy(update={"sources": {"peft": source}})
        identity = environment_identity("lock", "tag", stack.sources)
        key = fingerprints().of(plain.model_copy(update={"stack": stack}), identity)
        keys.add(key)
        assert (key is None) == (kind == "path")

    assert len(keys) == 3
    assert fingerprints().of(plain, None) is None, "an interpreter that the user gave"


def test_variables_of_a_cell_decide_where_it_works_does_not() -> None:
    def other(**given: Any) -> dict[str, str]:
        return {**child_environment(**given), "CUDA_VISIBLE_DEVICES": "1"}

    plain = fingerprints()
    seen: list[Path] = []

    def watched(**given: Any) -> dict[str, str]:
        seen.append(given["scratch"])
        return child_environment(**given)

    assert replace(plain, child_environment=other).of(cell(), "i") != plain.of(cell(), "i")
    assert replace(plain, child_environment=watched).of(cell(), "i") == plain.of(cell(), "i")
    assert not seen[0].exists()


def test_machines_differ_by_instruction_sets_and_gpus(tmp_path: Path) -> None:
    cpu, gpu = tmp_path / "cpuinfo", tmp_path / "nvidia"
    (gpu / "gpus" / "0").mkdir(parents=True)
    (gpu / "version").write_text("NVRM version: 580.1\nGCC version: 12\n")
    (gpu / "gpus" / "0" / "information").write_text("Model: \t NVIDIA H200\nIRQ: 4\n")
    cpu.write_text("processor: 0\nflags\t\t: fpu sse2 avx2 avx512_bf16 hypervisor\n")
    found = machine_kind("cuda", cpu=cpu, gpu=gpu)

    assert {"avx2", "avx512_bf16", "NVIDIA H200", "NVRM version: 580.1"} < set(found)
    assert not {"fpu", "hypervisor"} & set(found)
    assert "NVIDIA H200" not in machine_kind("cpu", cpu=cpu, gpu=gpu)
    assert len(machine_kind("cpu", cpu=tmp_path / "none", gpu=gpu)) == 1


def test_all_of_the_host_that_concludes_from_an_observation_is_in_the_key() -> None:
    """What ``finalise`` imports, directly or not, is in the bundle, in ``HOST_CODE``, or decides no result."""
    package = Path(harness.__file__).parent
    apart = {
        "supervise.py", "child.py", "deadman.py", "memory.py", "files.py",  # how a process is run and ended
        "errors.py", "planted.py", "services.py",
    }  # fmt: skip
    seen: set[str] = set()
    open_ = ["execution/finalise.py"]
    while open_:
        name = open_.pop()
        if name in seen or Path(name).name in apart or name.split("/")[0] in {*WORKER_PACKAGES, "matrix"}:
            continue
        seen.add(name)
        for node in ast.walk(ast.parse((package / name).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("harness."):
                path = str(node.module).removeprefix("harness.").replace(".", "/")
                open_.append(f"{path}.py" if (package / f"{path}.py").is_file() else f"{path}/__init__.py")

    assert seen <= set(HOST_CODE)
    assert all((package / name).is_file() for name in HOST_CODE)


@pytest.mark.parametrize("part", ["_host_code", "_schema", "machine_kind"])
def test_what_a_release_or_a_machine_gives_decides_too(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    before = fingerprints().of(cell(), "i")
    replaced: Callable[..., str] = lambda *_: "other"  # noqa: E731
    monkeypatch.setattr(fingerprint, part, replaced)

    assert fingerprints().of(cell(), "i") != before


def test_a_cell_keeps_its_key_whatever_it_is_called() -> None:
    plain = cell("lora")
    pinned: Cell = plain.model_copy(update={"stack": plain.stack.model_copy(update={"extra_pins": ("torch",)})})

    assert plain.id != pinned.id
    assert fingerprints().of(plain, "i") == fingerprints().of(pinned, "i")
