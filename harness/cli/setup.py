"""What every command needs before it can do anything: the configuration, the expectations, the names that exist."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from harness.errors import ConfigurationError
from harness.matrix.catalogue import Catalogue, read_catalogue
from harness.matrix.cell import Device
from harness.matrix.config import MatrixConfig, load_config
from harness.matrix.expectations import Expectation, check_expectations, load_expectations
from harness.matrix.locate import find_config, find_expectations

LOG_WIDTH = 240
"""Columns of a log, which wraps where it is read, not where it is written."""

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A validated configuration."""

    config: MatrixConfig
    catalogue: Catalogue
    expectations: tuple[Expectation, ...]
    path: Path


def load_setup(config: Path | None = None, expectations: Path | None = None) -> Setup:
    """Read and validate matrix.toml and expectations.toml.

    Raises:
        ConfigurationError: either says something that cannot be; the message names the key.
    """
    catalogue = read_catalogue()
    path = find_config(config)
    matrix = load_config(path, catalogue)
    expectations_path = find_expectations(expectations, path)
    declared = load_expectations(expectations_path)
    check_expectations(declared, matrix, catalogue, label=str(expectations_path))
    return Setup(config=matrix, catalogue=catalogue, expectations=declared, path=path)


def choose_device(text: str, python: Path | None) -> Device:
    """Return the device that ``--device`` means here.

    ``auto`` is ``cuda`` only where the user's own interpreter has a torch that sees a GPU: an environment of ours would have
    to install the CUDA build of torch first, several gigabytes that nobody asked for.

    Raises:
        ConfigurationError: it is not one of the three.
    """
    if text not in DEVICES:
        raise ConfigurationError(f"--device {text!r} is not one of {', '.join(DEVICES)}.")
    if text != "auto":
        return "cuda" if text == "cuda" else "cpu"
    if python is None:
        return "cpu"
    probe = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 1)"
    try:
        seen = subprocess.run([python, "-I", "-c", probe], check=False, capture_output=True, timeout=120)
    except OSError as error:
        raise ConfigurationError(f"--python {python}: {error.strerror}.") from error
    return "cuda" if seen.returncode == 0 else "cpu"


def console() -> Console:
    """Return the console that progress and tables are printed to: standard output, as wide as a table needs in a log."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(highlight=False, width=LOG_WIDTH)
