"""Keys, parsing and the torch rule, without uv."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.envs.interpreter import Interpreter
from harness.envs.lock import Lock, lock_key, locked_versions
from harness.envs.torch_build import TorchChoice, assert_torch_build, choose_torch, exact_torch, installed_build
from harness.envs.uv_command import Unresolvable
from harness.envs.venv import environment_key
from harness.envs.versions import pinned_version
from harness.errors import EnvironmentFailedError

INTERPRETER = Interpreter(
    python=Path("/usr/bin/python3"),
    version="3.11.2",
    implementation="CPython",
    abi="cpython-311-x86_64-linux-gnu",
    platform="linux-x86_64",
    libc="glibc-2.36",
    prefix=Path("/usr"),
    home=Path("/usr/bin/python3.11"),
    versions={},
)
LOCK = """six==1.17.0 \\
    --hash=sha256:4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274
torch==2.13.0+cpu ; sys_platform == 'linux' \\
    --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000
ruamel-yaml[jinja2]==0.18
"""


def test_a_lock_is_read_name_by_name() -> None:
    assert locked_versions(LOCK) == {"six": "1.17.0", "torch": "2.13.0+cpu", "ruamel-yaml": "0.18"}


KEY = {"interpreter_tag": "a", "uv_version": "1", "indexes_digest": "d", "device": "cpu"}


@given(st.permutations(["six==1", "peft==2", "trl==3"]))
def test_the_order_of_requirements_does_not_matter_to_the_key(requirements: list[str]) -> None:
    sorted_key = lock_key(["peft==2", "six==1", "trl==3"], **KEY)  # type: ignore[arg-type]  # a literal in a dict

    assert lock_key(requirements, **KEY) == sorted_key  # type: ignore[arg-type]  # a literal in a dict


def test_whatever_can_change_a_resolution_changes_the_key() -> None:
    base = lock_key(["six==1"], **KEY)  # type: ignore[arg-type]  # a literal in a dict
    variants = [KEY | {name: "cuda" if name == "device" else "z"} for name in KEY]
    keys = {lock_key(["six==1"], **variant) for variant in variants}  # type: ignore[arg-type]  # a literal in a dict
    keys.add(lock_key(["six==2"], **KEY))  # type: ignore[arg-type]  # a literal in a dict

    assert base not in keys
    assert len(keys) == 5


def test_another_lock_interpreter_or_link_mode_is_another_environment() -> None:
    lock = Lock(text=LOCK, torch_backend=None, reused=False)
    keys = {
        environment_key(lock, INTERPRETER),
        environment_key(replace(lock, text=LOCK + "\n"), INTERPRETER),
        environment_key(replace(lock, torch_backend="cpu"), INTERPRETER),
        environment_key(lock, replace(INTERPRETER, version="3.11.3")),
        environment_key(lock, replace(INTERPRETER, implementation="PyPy")),
        environment_key(lock, replace(INTERPRETER, home=Path("/elsewhere/python3.11"))),
        environment_key(lock, INTERPRETER, "copy"),
    }

    assert len(keys) == 7
    assert environment_key(replace(lock, reused=True), INTERPRETER) in keys


@pytest.mark.parametrize(
    ("requirement", "version"),
    [
        ("peft==0.19.1", "0.19.1"),
        ("torch===2.13.0", "2.13.0"),
        ("peft", None),
        ("peft>=1", None),
        ("peft==1.*", None),
        ("peft==1.0,!=1.1", None),
    ],
)
def test_only_an_exact_requirement_pins(requirement: str, version: str | None) -> None:
    assert pinned_version(requirement) == version


class Indexes:
    """A uv that knows what is offered, per backend: ``{backend: (requirements that resolve)}``."""

    def __init__(self, offered: dict[str | None, tuple[str, ...]], lock: str = "") -> None:
        self.offered, self.lock = offered, lock

    def __call__(self, arguments: Sequence[str], *, stdin: str | None = None) -> str:
        """Answer as uv does."""
        backend = arguments[arguments.index("--torch-backend") + 1] if "--torch-backend" in arguments else None
        if backend not in self.offered:
            raise EnvironmentFailedError("index out of reach")
        if str(stdin).strip() in self.offered[backend]:
            return self.lock
        raise Unresolvable("there is no version of torch")


def test_a_cpu_label_offered_by_an_index_is_taken() -> None:
    uv = Indexes({None: ("torch==2.13.0+cpu",), "cpu": ("torch==2.13.0+cpu",)})

    assert choose_torch(uv, "2.13.0", INTERPRETER, "cpu") == TorchChoice(requirement="torch==2.13.0+cpu")


def test_then_uvs_backend_is_asked() -> None:
    uv = Indexes({None: (), "cpu": ("torch==2.13.0+cpu",)})

    assert choose_torch(uv, "2.13.0", INTERPRETER, "cpu") == TorchChoice(requirement="torch==2.13.0+cpu", backend="cpu")


@pytest.mark.parametrize("offered", [{None: ("torch==2.13.0",)}, {None: (), "cpu": ()}])
def test_never_the_plain_build_for_a_cpu(offered: dict[str | None, tuple[str, ...]]) -> None:
    with pytest.raises(EnvironmentFailedError, match=r"No CPU build of torch 2\.13\.0") as caught:
        choose_torch(Indexes(offered), "2.13.0", INTERPRETER, "cpu")

    assert "PIP_FIND_LINKS" in str(caught.value.remedy)


def test_an_outage_is_not_taken_for_an_answer() -> None:
    with pytest.raises(EnvironmentFailedError, match="out of reach"):
        choose_torch(Indexes({"cpu": ("torch==2.13.0+cpu",)}), "2.13.0", INTERPRETER, "cpu")


def test_a_label_that_the_stack_names_is_kept_and_macos_has_only_one_build() -> None:
    uv = Indexes({})
    mac = replace(INTERPRETER, platform="macosx-14.0-arm64")

    assert choose_torch(uv, "2.13.0+cu130", INTERPRETER, "cuda").requirement == "torch==2.13.0+cu130"
    assert choose_torch(uv, "2.13.0", mac, "cpu").requirement == "torch==2.13.0"


def test_cuda_takes_the_plain_build_by_its_exact_name_if_it_brings_cuda() -> None:
    brings = Indexes({None: ("torch===2.13.0",)}, lock="nvidia-nccl-cu13==2\ntorch==2.13.0\n")
    without = Indexes({None: ("torch===2.13.0",), "auto": ("torch==2.13.0",)}, lock="torch==2.13.0\n")

    assert choose_torch(brings, "2.13.0", INTERPRETER, "cuda") == TorchChoice(requirement="torch===2.13.0")
    assert choose_torch(without, "2.13.0", INTERPRETER, "cuda").backend == "auto"
    with pytest.raises(EnvironmentFailedError, match="No CUDA build"):
        choose_torch(Indexes({None: ()}), "2.13.0", INTERPRETER, "cuda")


def test_a_cuda_lock_names_torch_so_that_no_cpu_wheel_fits() -> None:
    text = "torch==2.13.0 \\\n    --hash=sha256:0\ntorchvision==0.28.0\n"

    assert exact_torch(text) == "torch===2.13.0 \\\n    --hash=sha256:0\ntorchvision==0.28.0\n"
    assert exact_torch("torch==2.13.0+cu130 \\\n") == "torch==2.13.0+cu130 \\\n"
    assert exact_torch(exact_torch(text)) == exact_torch(text)


VERSION_FILE = """from typing import Optional
__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'rocm', 'xpu']
__version__ = '2.13.0'
debug = False
cuda: Optional[str] = {cuda}
git_version = '0'
hip: Optional[str] = {hip}
xpu: Optional[str] = None
"""


@pytest.mark.parametrize(
    ("cuda", "hip", "build"), [("None", "None", "cpu"), ("'13.0'", "None", "cuda"), ("None", "'7.1'", "other")]
)
def test_the_installed_build_is_read_from_torchs_own_file(tmp_path: Path, cuda: str, hip: str, build: str) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text(VERSION_FILE.format(cuda=cuda, hip=hip), encoding="utf-8")

    assert installed_build(tmp_path) == build
    for device in ("cpu", "cuda"):
        if device == build:
            assert assert_torch_build(tmp_path, device, where="it") == build
        else:
            with pytest.raises(EnvironmentFailedError, match=f"the {device} build"):
                assert_torch_build(tmp_path, device, where="it")


def test_an_environment_without_torch_has_no_build(tmp_path: Path) -> None:
    assert assert_torch_build(tmp_path, "cpu", where="it") is None
