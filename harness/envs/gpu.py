"""Whether cells can run on a GPU here, asked as cheaply as it can be known, and said with its cause.

In the order of what an answer costs: the kernel's driver and the devices (nothing), which build of torch an
interpreter has (its files are read, nothing is imported), whether that torch can use a GPU (it is imported).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from harness.envs.torch_build import Build, installed_build
from harness.errors import ConfigurationError

DRIVER = Path("/proc/driver/nvidia/version")
"""There while NVIDIA's kernel module is loaded. Under WSL it is not, but ``nvidia-smi`` is in the path there."""
NODES = Path("/dev")
"""Where a process finds the devices it may use. A container that was not passed the GPU has none of them."""
NODE_NAMES = ("nvidia[0-9]*", "dxg", "nvhost*")
"""Those of a GPU (the control node ``nvidiactl`` is none), of one under WSL, and of a Tegra."""
TIME_LIMIT = 120.0
"""Seconds. Importing torch from a cold network disk takes a minute."""

_WHERE = (
    "import importlib.util, json; spec = importlib.util.find_spec('torch'); print(json.dumps(spec and spec.origin))"
)
_TRY = """
import json, torch
try:
    torch.zeros(1, device="cuda")
except (RuntimeError, AssertionError) as error:
    print(json.dumps(str(error).strip().splitlines()[0]))
else:
    print(json.dumps(None))
"""


def has_driver() -> bool:
    """Whether this machine has an NVIDIA driver."""
    return DRIVER.exists() or shutil.which("nvidia-smi") is not None


def has_device() -> bool:
    """Whether this process can reach a GPU that the driver has."""
    return any(next(NODES.glob(name), None) is not None for name in NODE_NAMES)


def torch_build(python: Path) -> Build | None:
    """Return which build of torch an interpreter has, None for none; it is not imported.

    Raises:
        ConfigurationError: the interpreter does not run.
    """
    origin = _ask(python, _WHERE)
    return installed_build(Path(str(origin)).parents[1]) if origin is not None else None


BY_HAND = "Run `import torch` in it by hand: it must be a Python with a torch that works. Or leave out --python."


def why_no_gpu(python: Path) -> str | None:
    """Return why an interpreter's torch can use no GPU, in its own words; None when it can.

    Takes as long as importing torch.

    Raises:
        ConfigurationError: the interpreter does not run, or cannot import torch.
    """
    reason = _ask(python, _TRY)
    return None if reason is None else str(reason)


def _ask(python: Path, program: str) -> object:
    try:
        done = subprocess.run(
            [python, "-I", "-c", program], check=True, capture_output=True, text=True, timeout=TIME_LIMIT
        )
    except OSError as error:
        raise ConfigurationError(f"--python {python}: {error.strerror}.", remedy=BY_HAND) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().splitlines()[-1:] or [f"exit code {error.returncode}"]
        raise ConfigurationError(f"{python} cannot say whether it has a GPU: {last[0]}", remedy=BY_HAND) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(
            f"{python} did not say within {TIME_LIMIT:.0f} s whether it has a GPU.", remedy=BY_HAND
        ) from error
    answer: object = json.loads(done.stdout.splitlines()[-1])
    return answer
