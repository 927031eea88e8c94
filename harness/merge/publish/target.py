"""Where a merge publishes: a place that can be named, and that holds nothing that would be lost."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from harness.merge.base.checkpoint import CONFIG_FILE, MANIFEST_FILE
from harness.merge.errors import OutputExistsError, UnsafeOutputError

PART_FILE = "merge_part.json"
"""What describes a part of a merge that several machines share (``parts``)."""
LONGEST_NAME = 255
"""Bytes of a file's name (Linux, ``NAME_MAX``)."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A checked output: the real path to publish at, and whether something there is to be replaced."""

    path: Path
    overwrite: bool
    inode: int | None = None
    """What is to be replaced, so that nothing else is."""


def real_path(out: Path) -> Path:
    """Return where an output is published: its parents resolved, its own name kept.

    Raises:
        UnsafeOutputError: it is no name that a directory can have.
    """
    given = out.absolute()
    if given.name in {"", ".."} or "\0" in str(given):
        raise UnsafeOutputError(f"{str(out)!r} does not name an output directory.")
    if len(os.fsencode(work_name(given.name))) > LONGEST_NAME:
        longest = LONGEST_NAME - len(work_name(""))
        raise UnsafeOutputError(
            f"the output's name is {len(os.fsencode(given.name))} bytes long: {given.name}",
            f"Choose one of at most {longest} bytes: the directory that is worked in needs a longer one.",
        )
    return given.parent.resolve() / given.name


def work_name(name: str) -> str:
    """Return a name for a directory in which an output of this name is made."""
    return f".{name}.partial-{secrets.token_hex(4)}"


def check_apart(path: Path, inputs: tuple[Path, ...]) -> None:
    """Refuse an output, by its real path, that is, holds or lies in an input.

    Raises:
        UnsafeOutputError: it does.
    """
    for given in inputs:
        if path == given or path.is_relative_to(given) or given.is_relative_to(path):
            raise UnsafeOutputError(
                f"the output {path} overlaps the input {given.name}.", "Choose a directory of its own."
            )


def check_target(out: Path, *, overwrite: bool, inputs: tuple[Path, ...]) -> Target:
    """Return where to publish, having refused what would lose data.

    Args:
        out: the output directory as given.
        overwrite: whether it may exist.
        inputs: real paths of the base and adapter directories.

    Raises:
        OutputExistsError: it exists and ``overwrite`` is off.
        UnsafeOutputError: it overlaps an input, is a link or a file, or holds something that is no checkpoint.
    """
    path = real_path(out)
    check_apart(path, inputs)
    if not os.path.lexists(path):
        return Target(path=path, overwrite=False)
    if not overwrite:
        raise OutputExistsError(
            f"the output {out} exists.", "Choose another directory, or pass --overwrite to replace it."
        )
    if path.is_symlink() or not path.is_dir():
        raise UnsafeOutputError(
            f"the output {out} is not a directory, so it is not overwritten.", "Remove it yourself."
        )
    if any(path.iterdir()) and not any((path / name).is_file() for name in (CONFIG_FILE, MANIFEST_FILE, PART_FILE)):
        raise UnsafeOutputError(
            f"the output {out} holds files but no {CONFIG_FILE} or {MANIFEST_FILE}: it does not look like a"
            " checkpoint.",
            "Remove it yourself if it may go.",
        )
    return Target(path=path, overwrite=True, inode=path.stat().st_ino)
