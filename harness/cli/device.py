"""What ``--device`` means here, and the error where a GPU was asked for and cannot be had.

The error comes before anything is installed.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.contract.cell_fields import Device
from harness.envs import gpu
from harness.errors import ConfigurationError, EnvironmentFailedError

DEVICES = ("auto", "cpu", "cuda")
VISIBLE = "CUDA_VISIBLE_DEVICES"
ON_THE_CPU = "use --device cpu"


def choose_device(text: str, python: Path | None) -> Device:
    """Return the device that ``--device`` means here.

    ``auto`` is ``cuda`` only where the user's own interpreter has a torch that sees a GPU. An environment of ours would
    have to install the CUDA build of torch first, several gigabytes that nobody asked for.

    Raises:
        ConfigurationError: it is not one of the three, or a GPU was asked for and there is none to be had.
    """
    if text not in DEVICES:
        raise ConfigurationError(
            f"--device {text!r} is not one of {', '.join(DEVICES)}.", remedy="Leave it out for auto."
        )
    if text == "cpu" or (text == "auto" and python is None):
        return "cpu"
    problem = _problem(python)
    if problem is None:
        return "cuda"
    if text == "auto":
        return "cpu"
    raise problem


def require_gpu(python: Path, *, label: str) -> None:
    """Check an environment that was made for ``--device cuda``, before its first cell.

    Raises:
        EnvironmentFailedError: its torch can use no GPU, or cannot be imported.
    """
    try:
        reason = gpu.why_no_gpu(python)
    except ConfigurationError as error:
        raise EnvironmentFailedError(error.message, remedy=error.remedy) from error
    if reason is not None:
        raise EnvironmentFailedError(
            f"The environment of {label} has a CUDA build of torch, which can use no GPU here: {reason}",
            remedy="Compare its CUDA version with the driver's (nvidia-smi) and look at CUDA_VISIBLE_DEVICES, "
            f"or {ON_THE_CPU}.",
        )


def _problem(python: Path | None) -> ConfigurationError | None:
    """Return why no cell could run on a GPU, as far as it can be known before anything is installed."""
    return _problem_of_machine() or (None if python is None else _problem_of_interpreter(python))


def _problem_of_machine() -> ConfigurationError | None:
    if not gpu.has_driver():
        return ConfigurationError(
            "--device cuda: there is no NVIDIA driver on this machine, so torch can use no GPU.",
            remedy=f"Run it on a machine with a GPU (in a container, with the GPU passed in), or {ON_THE_CPU}.",
        )
    if not gpu.has_device():
        return ConfigurationError(
            "--device cuda: there is an NVIDIA driver but no GPU under /dev, so torch can use none.",
            remedy=f"In a container, pass the GPU in (docker run --gpus all), or {ON_THE_CPU}.",
        )
    if os.environ.get(VISIBLE, "all").strip() in ("", "-1"):
        return ConfigurationError(
            f"--device cuda: {VISIBLE}={os.environ[VISIBLE]!r} hides every GPU.", remedy=f"Unset it, or {ON_THE_CPU}."
        )
    return None


def _problem_of_interpreter(python: Path) -> ConfigurationError | None:
    build = gpu.torch_build(python)
    if build is None:
        return ConfigurationError(
            f"--device cuda: {python} has no torch.", remedy="Name an interpreter that has a CUDA build of torch."
        )
    if build != "cuda":
        return ConfigurationError(
            f"--device cuda: the torch of {python} is built without CUDA (it is the {build} build).",
            remedy=f"Install a CUDA build of torch there, or {ON_THE_CPU}.",
        )
    reason = gpu.why_no_gpu(python)
    if reason is None:
        return None
    return ConfigurationError(
        f"--device cuda: the torch of {python} is built for CUDA and can use no GPU here: {reason}",
        remedy="Compare its CUDA version with the driver's (nvidia-smi) and look at CUDA_VISIBLE_DEVICES, "
        f"or {ON_THE_CPU}.",
    )
