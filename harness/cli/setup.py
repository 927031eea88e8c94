"""What every command needs before it can do anything: the configuration, the expectations, the names that exist."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version
from rich.console import Console

from harness.envs import unmanaged_environment
from harness.errors import ConfigurationError
from harness.matrix.catalogue import Catalogue, read_catalogue
from harness.matrix.cell import MAIN_PACKAGES, Stack
from harness.matrix.config import MatrixConfig, load_config
from harness.matrix.expectations import Expectation, check_expectations, load_expectations
from harness.matrix.locate import find_config, find_expectations

PINNED = ("torch", "bitsandbytes", "accelerate", "datasets")
"""Packages beside the three whose versions belong to a stack."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
"""``ORG/NAME`` or ``ORG/NAME@REVISION``, which a relative path may look like."""

LOG_WIDTH = 240
"""Columns of a log, which wraps where it is read, not where it is written."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A validated configuration; ``options`` are those of the command line that chose it, quoted for a shell."""

    config: MatrixConfig
    catalogue: Catalogue
    expectations: tuple[Expectation, ...]
    path: Path
    options: str


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
    given = {"--config": config, "--expectations": expectations}
    options = shlex.join(word for name, file in given.items() if file is not None for word in (name, str(file)))
    return Setup(config=matrix, catalogue=catalogue, expectations=declared, path=path, options=options)


def check_writable(path: Path, option: str) -> None:
    """Refuse a file that could not be written, before the work whose result goes there.

    Raises:
        ConfigurationError: its directory is not there, or it is a directory itself.
    """
    if path.is_dir():
        raise ConfigurationError(f"{option} {path}: this is a directory.", remedy="Name a file in it.")
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(f"{option} {path}: its directory does not exist.", remedy="Make it first.")


def check_out(out: Path) -> None:
    """Refuse an output directory that could not be written, before the work whose results go there. None is made.

    Raises:
        ConfigurationError: it is a file, lies below one, or is where nothing can be written.
    """
    place = out.absolute()
    for inside in (place / "cells", *(place / "cells").parents):
        if os.path.lexists(inside):
            if not inside.is_dir():
                raise ConfigurationError(f"--out {out}: {inside} is no directory.", remedy="Give another with --out.")
            if not os.access(inside, os.W_OK | os.X_OK):
                raise ConfigurationError(
                    f"--out {out}: nothing can be written to {inside}.", remedy="Give another directory with --out."
                )
            return


def check_there(what: str, place: str) -> None:
    """Refuse an input directory that is not there, before an environment is made to read it.

    Args:
        what: what it should hold, as ``"base"``.
        place: a path, or a model's name in the hub's cache, which the program that reads it looks up.

    Raises:
        ConfigurationError: it is no such name, and there is no such directory.
    """
    if not os.path.lexists(place) and _HUB_NAME.fullmatch(place) is None:
        raise ConfigurationError(
            f"the {what} directory {place} does not exist.", remedy=f"Give the directory that holds the {what}."
        )


def installed_stack(python: Path) -> Stack:
    """Return the stack that an existing interpreter holds: what is there, not what was declared.

    Raises:
        ConfigurationError: it is no Python, or one of transformers, peft, trl and torch is not installed there.
    """
    versions = unmanaged_environment(python).versions
    missing = [name for name in (*MAIN_PACKAGES, "torch") if name not in versions]
    if missing:
        raise ConfigurationError(
            f"--python {python}: not installed there: {', '.join(missing)}.",
            remedy="Install what is missing, or leave out --python and an environment is made.",
        )
    public = {name: Version(versions[name]).public for name in (*MAIN_PACKAGES, *PINNED) if name in versions}
    pins = {name: version for name, version in public.items() if name not in MAIN_PACKAGES}
    return Stack.model_validate({**{name: public[name] for name in MAIN_PACKAGES}, "pins": pins})


def console() -> Console:
    """Return the console that progress and tables are printed to.

    It is standard output, as wide as a table needs in a log.
    """
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(highlight=False, width=LOG_WIDTH)
