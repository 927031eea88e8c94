"""Which file a name inside a checkpoint or adapter directory may lead to.

Names come from untrusted indexes and links from untrusted archives. A file is accepted when it is a regular file whose
real place is inside the directory; the one other accepted shape is a model-hub cache snapshot, whose files are links
into the ``blobs`` directory beside its ``snapshots``.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.merge.errors import InconsistentCheckpointError, InputNotFoundError, UnsafePathError
from harness.merge.files.hub_cache import find_directory
from harness.merge.files.json_file import plain_file_size

MAX_DEPTH = 32
"""Directories within one another; a checkpoint has one or two levels."""


def open_root(path: Path, what: str) -> Path:
    """Return the real path of an input directory.

    Raises:
        InputNotFoundError: there is no such directory.
    """
    path = find_directory(path)
    there = os.path.lexists(path)  # false for a name that no file can have, of which Path.exists raises
    if not there or not path.is_dir():
        raise InputNotFoundError(
            f"the {what} {path} is a file."
            if there and path.exists()
            else f"the {what} directory {path} does not exist.",
            f"Give the directory that holds the {what}.",
        )
    return path.resolve()


def blobs_of(root: Path) -> Path | None:
    """Return the ``blobs`` directory of a hub cache when ``root`` is one of its snapshots, else None."""
    if root.parent.name != "snapshots":
        return None
    blobs = root.parent.parent / "blobs"
    return blobs.resolve() if blobs.is_dir() else None


def check_name(name: str, where: str) -> None:
    """Refuse a shard name that is not one plain file name.

    Raises:
        UnsafePathError: the name has a separator, is empty, ``.`` or ``..``, or holds a control character.
    """
    if name in {"", ".", ".."} or not name.isprintable() or "/" in name or "\\" in name:
        raise UnsafePathError(f"{where} names the file {name[:80]!r}, which is not a plain name in its own directory.")


def confined(root: Path, relative: str) -> Path:
    """Return the real path of the file ``relative`` of the real directory ``root``.

    Raises:
        InconsistentCheckpointError: there is no such file (a dangling link is none).
        UnsafePathError: it leads out of the directory (and not into the snapshot's own blobs), or is no regular file.
    """
    try:
        real = (root / relative).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        swapped = relative == "config.json" and (root / "adapter_config.json").exists()
        raise InconsistentCheckpointError(
            f"{root.name} holds no {relative}.",
            "It looks like an adapter: are the base and the adapter exchanged?"
            if swapped
            else "Give the right directory, or download the file again.",
        ) from error
    blobs = blobs_of(root)
    if not (real.is_relative_to(root) or (blobs is not None and real.parent == blobs)):
        raise UnsafePathError(f"{relative} is a link that leaves its directory.", "Copy the file into the directory.")
    plain_file_size(real)
    return real


def _is_text(name: str) -> bool:
    """Return whether a file name can be written down: Python stands surrogates for bytes that are not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def walk_files(root: Path) -> list[str]:
    """Return the relative paths of all files below ``root``, sorted; version control and download caches are left out.

    Raises:
        UnsafePathError: a directory is a link, or far too deep, or a name is not text.
    """
    found: list[str] = []
    for folder, directories, files in os.walk(root):
        directories[:] = [name for name in directories if name not in {".git", ".cache"}]
        if len(Path(folder).parts) - len(root.parts) > MAX_DEPTH:
            raise UnsafePathError(f"directories are nested more than {MAX_DEPTH} deep in {root.name}.", "Remove them.")
        if strange := [name for name in (*directories, *files) if not _is_text(name)]:
            raise UnsafePathError(f"the name of {strange[0]!a} in {root.name} is not UTF-8.", "Rename the file.")
        for name in directories:
            if Path(folder, name).is_symlink():
                raise UnsafePathError(f"{Path(folder, name).relative_to(root)} is a link to a directory.")
        found += [str(Path(folder, name).relative_to(root)) for name in files]
    return sorted(found)
