"""All or nothing: a working directory beside the output, and one rename that makes it the output.

Whatever happens before the rename, there is no new output directory. With ``overwrite`` the finished directory and the old
one change places in one step (Linux ``renameat2`` with RENAME_EXCHANGE), so there is always the old or the new one, complete. A file
system that cannot do that is refused before any work, because two renames would leave a moment with neither.

A working directory is locked by its process. One that nobody holds was left by a merge that was killed; the next merge to the same output removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.merge.checkpoint import CONFIG_FILE, LEDGER_FILE, MANIFEST_FILE
from harness.merge.copying import failed, sync_directory
from harness.merge.errors import IncompleteMergeError, OutputExistsError, OverwriteUnsupportedError, UnsafeOutputError

PART_FILE = "merge_part.json"
"""What describes a part of a merge that several machines share (``parts``)."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True, kw_only=True)
class Target:
    """A checked output: the real path to publish at, and whether something there is to be replaced."""

    path: Path
    overwrite: bool
    inode: int | None = None
    """What is to be replaced, so that nothing else is."""


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
    path = out.absolute().parent.resolve() / out.absolute().name
    if path.name in {"", ".", ".."}:
        raise UnsafeOutputError(f"{out} does not name an output directory.")
    for given in inputs:
        if path == given or path.is_relative_to(given) or given.is_relative_to(path):
            raise UnsafeOutputError(
                f"the output {out} overlaps the input {given.name}.", "Choose a directory of its own."
            )
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
            f"the output {out} holds files but no {CONFIG_FILE} or {MANIFEST_FILE}: it does not look like a checkpoint.",
            "Remove it yourself if it may go.",
        )
    return Target(path=path, overwrite=True, inode=path.stat().st_ino)


def exchange(first: Path, second: Path) -> None:
    """Let two directories change places in one step.

    Raises:
        OSError: EINVAL or ENOSYS where the file system or kernel cannot.
    """
    library = ctypes.CDLL(None, use_errno=True)
    rename = getattr(library, "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _check_exchange(work: Path) -> None:
    """Try the exchange on two empty directories."""
    first, second = (work / f".exchange-{secrets.token_hex(4)}" for _ in range(2))
    first.mkdir()
    second.mkdir()
    try:
        exchange(first, second)
    except OSError as error:
        raise OverwriteUnsupportedError(
            f"this file system cannot exchange two directories in one step ({error.strerror}), so --overwrite could leave neither.",
            "Remove the old directory first, or write to a new one.",
        ) from error
    finally:
        first.rmdir()
        second.rmdir()


def _lock(path: Path) -> int | None:
    """Return a descriptor that holds the directory's lock, or None when another process has it (or it is gone)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


Keep = Callable[[Path], bool]
"""Says whether a directory that an unfinished merge left is to be gone on with."""


def _leftover(target: Path, keep: Keep | None) -> tuple[Path, int] | None:
    """Remove working directories for this output that no process holds any more; return the first that is to be kept, locked."""
    kept: tuple[Path, int] | None = None
    for path in sorted(target.parent.glob(f".{glob_escape(target.name)}.partial-*")):
        ours = re.fullmatch(re.escape(f".{target.name}.partial-") + "[0-9a-f]{8}", path.name)
        if not ours or path.is_symlink() or not path.is_dir() or path.stat().st_uid != os.geteuid():
            continue
        descriptor = _lock(path)
        if descriptor is None:
            continue
        if kept is None and keep is not None and keep(path):
            kept = path, descriptor
            continue
        shutil.rmtree(path)
        os.close(descriptor)
    return kept


def glob_escape(name: str) -> str:
    """Return ``name`` with the characters that globs treat specially made literal."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _make_parents(path: Path) -> list[Path]:
    """Make the missing parents of ``path``; return them, innermost first."""
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    return missing


@contextlib.contextmanager
def working_directory(target: Target, *, keep: Keep | None = None) -> Iterator[Path]:
    """Yield a locked directory beside the output; it is gone afterwards unless it was published.

    Args:
        target: the output.
        keep: where given, a directory that an unfinished merge left, and of which this is true, is yielded instead of a new one; and it is
            kept for the next merge if this one does not finish either.

    Raises:
        IncompleteMergeError: the directory cannot be made.
        OverwriteUnsupportedError: ``target.overwrite``, and the file system cannot exchange directories.
    """
    work = target.path.parent / f".{target.path.name}.partial-{secrets.token_hex(4)}"
    made: list[Path] = []
    descriptor: int | None = None
    try:
        try:
            made = _make_parents(target.path)
            found = _leftover(target.path, keep)
            if found is None:
                work.mkdir()
                descriptor = _lock(work)
            else:
                work, descriptor = found
        except OSError as error:
            raise failed(str(target.path.name), error) from error
        if descriptor is None:
            raise IncompleteMergeError("another merge to the same output started at the same moment.", "Run it again.")
        if target.overwrite:
            _check_exchange(work)
        yield work
    finally:
        if keep is None or not keep(work):
            shutil.rmtree(work, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)
        if not target.path.exists():
            for parent in made:
                if not any(parent.iterdir()):
                    parent.rmdir()


def check_space(folder: Path, needed: int) -> None:
    """Refuse a merge that cannot fit. Bytes that are only copied are not counted: some file systems share them.

    Args:
        folder: where will be written.
        needed: bytes that will be written anew.

    Raises:
        IncompleteMergeError: fewer bytes are free.
    """
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise IncompleteMergeError(
            f"the output needs at least {needed} bytes, and {free} are free where it would be. Nothing was published.",
            "Free some space, or choose an output on another file system.",
        )


def publish(work: Path, target: Target) -> None:
    """Make the finished directory the output, in one rename.

    Raises:
        OutputExistsError: something appeared at the output while the merge ran.
        IncompleteMergeError: the rename failed.
    """
    try:
        for folder, _, _ in os.walk(work):
            sync_directory(Path(folder))
        if target.inode is not None and os.path.lexists(target.path) and target.path.lstat().st_ino == target.inode:
            exchange(work, target.path)
            # What was there is in the working directory now, which nobody is to go on with.
            (target.path / LEDGER_FILE).unlink(missing_ok=True)
        elif os.path.lexists(target.path):
            raise OutputExistsError(f"the output {target.path.name} appeared while the merge ran; it was left alone.")
        else:
            work.rename(target.path)
            (target.path / LEDGER_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise failed(target.path.name, error) from error
    # From here on the output is there. Making the rename itself durable is all that is left, and a parent directory that
    # cannot be synced (some network file systems) takes nothing back.
    with contextlib.suppress(OSError):
        sync_directory(target.path.parent)
