"""Finding a model by its name on the hub in the local cache; nothing is downloaded.

The cache's layout is huggingface_hub's ("Understand caching"): ``models--ORG--NAME/refs/REVISION`` holds a commit,
``snapshots/COMMIT`` the files. Where it lies follows huggingface_hub's environment variables.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from harness.merge.errors import InputNotFoundError

_NAME = re.compile(r"(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?:@(?P<revision>[\w./-]{1,250}))?", re.ASCII)


def cache_folder() -> Path:
    """Return the hub's cache: ``HF_HUB_CACHE``, else ``hub`` in ``HF_HOME``, else in ``~/.cache/huggingface`` (or that
    of ``XDG_CACHE_HOME``).
    """
    if said := os.environ.get("HF_HUB_CACHE"):
        return _at_home(said)
    if said := os.environ.get("HF_HOME"):
        return _at_home(said) / "hub"
    return _at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def _at_home(said: str) -> Path:
    try:
        return Path(said).expanduser()
    except RuntimeError as error:
        raise InputNotFoundError(
            f"the hub's cache is said to be in {said}, and that home directory is nobody's.",
            "Set HF_HUB_CACHE to a directory, or give the directory of the model.",
        ) from error


def find_directory(given: str | Path) -> Path:
    """Return the directory that is meant: one that exists, or ``ORG/NAME`` or ``ORG/NAME@REVISION`` in the hub's cache.

    Args:
        given: a path always wins over a name; ``REVISION`` is a branch, tag or commit, ``main`` by default.

    Raises:
        InputNotFoundError: neither is there.
    """
    path = Path(given)
    match = _NAME.fullmatch(str(given))
    if os.path.lexists(path) or match is None or ".." in str(given):
        return path
    repo, revision = match["repo"], match["revision"] or "main"
    folder = cache_folder() / f"models--{repo.replace('/', '--')}"
    if not folder.is_dir():
        raise InputNotFoundError(
            f"there is no directory {given}, and no model {repo} in the hub's cache.",
            f"Give a directory, or download it first: hf download {repo}",
        )
    reference = folder / "refs" / revision
    # Bytes that are no text become what no commit holds.
    commit = reference.read_text(encoding="ascii", errors="replace").strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    if not re.fullmatch(r"[\w-]+", commit, re.ASCII) or not snapshot.is_dir():
        raise InputNotFoundError(
            f"the hub's cache holds {repo}, but not its revision {revision}.",
            f"Download it: hf download {repo} --revision {revision}",
        )
    return snapshot
