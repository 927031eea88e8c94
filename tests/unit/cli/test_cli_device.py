"""A GPU that was asked for and is not there: said in a second, with the cause, before anything is installed."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from harness.cli.device import choose_device, require_gpu
from harness.envs import gpu
from harness.errors import ConfigurationError, EnvironmentFailedError
from harness.execution.executors.local import GPU_CELL_PROCESSES
from harness.worker.cell import GROUPS


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has a driver, whatever this one has."""
    (tmp_path / "version").write_text("NVRM version: 580")
    monkeypatch.setattr(gpu, "DRIVER", tmp_path / "version")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    monkeypatch.setattr(gpu, "NODES", tmp_path / "dev")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has none."""
    monkeypatch.setattr(gpu, "DRIVER", tmp_path / "nothing")
    monkeypatch.setenv("PATH", str(tmp_path))


def interpreter(folder: Path, *, cuda: str | None, torch: str | None) -> Path:
    """An environment with a torch of a few lines; ``torch`` None: none at all."""
    venv.create(folder / "env", symlinks=True, with_pip=False)
    (site,) = (folder / "env" / "lib").glob("python3.*/site-packages")
    if torch is not None:
        (site / "torch").mkdir()
        (site / "torch" / "__init__.py").write_text(torch)
        (site / "torch" / "version.py").write_text(f"__version__ = '2.13.0'\ncuda: str | None = {cuda!r}\n")
    return folder / "env" / "bin" / "python"


SEES_A_GPU = "def zeros(count, device):\n    return [0]\n"
SEES_NONE = "def zeros(count, device):\n    raise RuntimeError('No CUDA GPUs are available\\nmore')\n"
NEVER = "raise SystemExit('imported, which takes seconds')\n"


def message(text: str, python: Path | None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        choose_device(text, python)
    assert caught.value.exit_code == 2
    assert caught.value.remedy is not None
    return caught.value.message


@pytest.mark.usefixtures("driver")
def test_a_driver_without_a_device_is_not_enough(tmp_path: Path) -> None:
    """As in a container on a GPU machine that has not had the GPU passed in."""
    (tmp_path / "dev" / "nvidia0").rename(tmp_path / "dev" / "nvidiactl")

    assert message("cuda", None) == (
        "--device cuda: there is an NVIDIA driver but no GPU under /dev, so torch can use none."
    )
    for name in ("dxg", "nvhost-ctrl-gpu", "nvidia3"):
        (tmp_path / "dev" / name).touch()
        assert choose_device("cuda", None) == "cuda"
        (tmp_path / "dev" / name).unlink()


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("value", ["", "-1"])
def test_gpus_that_are_hidden_are_not_there(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)

    assert message("cuda", None) == f"--device cuda: CUDA_VISIBLE_DEVICES={value!r} hides every GPU."
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert choose_device("cuda", None) == "cuda"


@pytest.mark.usefixtures("no_driver")
def test_without_a_driver_nothing_else_is_asked(tmp_path: Path) -> None:
    for python in (None, tmp_path / "no-such-python"):
        assert message("cuda", python) == (
            "--device cuda: there is no NVIDIA driver on this machine, so torch can use no GPU."
        )
    assert choose_device("auto", tmp_path / "no-such-python") == "cpu"


@pytest.mark.usefixtures("driver")
def test_a_torch_without_cuda_is_told_from_its_files(tmp_path: Path) -> None:
    python = interpreter(tmp_path, cuda=None, torch=NEVER)

    assert message("cuda", python) == (
        f"--device cuda: the torch of {python} is built without CUDA (it is the cpu build)."
    )
    assert choose_device("auto", python) == "cpu"


@pytest.mark.usefixtures("driver")
def test_an_interpreter_without_torch(tmp_path: Path) -> None:
    python = interpreter(tmp_path, cuda=None, torch=None)

    assert message("cuda", python) == f"--device cuda: {python} has no torch."
    assert choose_device("auto", python) == "cpu"


@pytest.mark.usefixtures("driver")
def test_a_torch_that_can_use_no_gpu_says_why_itself(tmp_path: Path) -> None:
    python = interpreter(tmp_path, cuda="13.0", torch=SEES_NONE)

    assert message("cuda", python).endswith("is built for CUDA and can use no GPU here: No CUDA GPUs are available")
    assert choose_device("auto", python) == "cpu"
    with pytest.raises(EnvironmentFailedError, match=r"of a-stack has .*: No CUDA GPUs are available") as caught:
        require_gpu(python, label="a-stack")
    assert caught.value.exit_code == 4


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("text", ["auto", "cuda"])
def test_a_gpu_that_can_be_used_is_used(tmp_path: Path, text: str) -> None:
    python = interpreter(tmp_path, cuda="13.0", torch=SEES_A_GPU)

    assert choose_device(text, python) == "cuda"
    require_gpu(python, label="a-stack")


@pytest.mark.usefixtures("driver")
def test_an_environment_of_ours_is_cuda_only_where_it_is_asked_for() -> None:
    assert choose_device("auto", None) == "cpu"
    assert choose_device("cuda", None) == "cuda"


def test_a_device_that_is_none() -> None:
    with pytest.raises(ConfigurationError, match="not one of auto, cpu, cuda"):
        choose_device("tpu", None)


@pytest.mark.skipif(gpu.has_driver(), reason="this machine has a driver")
def test_the_command_says_so_before_it_does_anything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness", "run", "--model", "qwen3_moe", "--device", "cuda", "--out", tmp_path]
    done = subprocess.run(command, check=False, capture_output=True, text=True)

    assert done.returncode == 2
    assert "there is no NVIDIA driver on this machine" in done.stderr
    assert "--device cpu" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "", "no version was looked up and no environment begun"


def test_jobs_on_a_gpu_are_shared_out_by_the_processes_that_a_cell_starts() -> None:
    assert len(GROUPS) == GPU_CELL_PROCESSES
