"""Where a Python of some version may lie that uv does not get to.

uv gives up at the first program of that name in the path that does not run. With pyenv that is usual: its shims are
there for every version that is installed, and run for those that are chosen where they are started. What a shim stands
for lies below pyenv's own folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.version import InvalidVersion, Version


def python_candidates(version: str, environ: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Yield each program that may be a Python of ``version`` (``major.minor``), once.

    First those in the path, in its order, then those of pyenv, the newest patch first.
    """
    env = os.environ if environ is None else environ
    folders = [Path(folder) for folder in env.get("PATH", "").split(os.pathsep) if folder]
    roots = [Path(env["PYENV_ROOT"])] if env.get("PYENV_ROOT") else []
    roots += [folder.parent for folder in folders if folder.name == "shims"]
    found = [folder / f"python{version}" for folder in folders]
    found += [path for root in roots for path in _of_pyenv(root, version)]
    yield from dict.fromkeys(path.absolute() for path in found if os.access(path, os.X_OK) and not path.is_dir())


def _of_pyenv(root: Path, version: str) -> list[Path]:
    """Return the interpreters of that version that pyenv has made below ``root``, the newest first."""
    folders: dict[Version, Path] = {}
    for folder in (root / "versions").glob(f"{version}*"):
        try:
            number = Version(folder.name)
        except InvalidVersion:
            continue  # a virtual environment, or another implementation
        if f"{number.major}.{number.minor}" == version:
            folders[number] = folder / "bin" / f"python{version}"
    return [folders[number] for number in sorted(folders, reverse=True)]
