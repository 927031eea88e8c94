"""All or nothing: a working directory beside the output, and one rename that makes it the output.

Whatever happens before the rename, there is no new output directory. With ``overwrite`` the finished directory and the
old one change places in one step (Linux ``renameat2`` with RENAME_EXCHANGE). So there is always the old or the new one,
complete. A file system that cannot do that is refused before any work: two renames would leave a moment with neither.

A working directory is locked by its process. One that nobody holds was left by a merge that was killed. The next merge
to the same output removes it.
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
from pathlib import Path

from harness.merge.base.checkpoint import LEDGER_FILE
from harness.merge.errors import IncompleteMergeError, OutputExistsError, OverwriteUnsupportedError
from harness.merge.files.copying import failed, sync_directory
from harness.merge.publish.target import Target, work_name

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


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
            f"this file system cannot exchange two directories in one step ({error.strerror}), so --overwrite could"
            " leave neither.",
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


def unfinished(target: Path) -> list[Path]:
    """Return the working directories of this user that merges to an output made, running ones too, in order."""
    pattern = re.compile(re.escape(f".{target.name}.partial-") + "[0-9a-f]{8}")
    return sorted(
        path
        for path in target.parent.glob(f".{glob_escape(target.name)}.partial-*")
        if pattern.fullmatch(path.name)
        and not path.is_symlink()
        and path.is_dir()
        and path.stat().st_uid == os.geteuid()
    )


def _leftover(target: Path, keep: Keep | None) -> tuple[Path, int] | None:
    """Remove working directories for this output that no process holds any more.

    Return the first that is to be kept, locked.
    """
    kept: tuple[Path, int] | None = None
    for path in unfinished(target):
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
        keep: where given, a directory that an unfinished merge left, and of which this is true, is yielded instead of a
            new one; and it is kept for the next merge if this one does not finish either.

    Raises:
        IncompleteMergeError: the directory cannot be made.
        OverwriteUnsupportedError: ``target.overwrite``, and the file system cannot exchange directories.
    """
    work = target.path.with_name(work_name(target.path.name))
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
            raise failed(f"the output {target.path}", error) from error
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
        if not os.path.lexists(target.path):
            for parent in made:
                if not any(parent.iterdir()):
                    parent.rmdir()


def check_space(folder: Path, needed: int, *, regained: int = 0) -> int:
    """Refuse a merge that cannot fit; return how many bytes there are for it.

    Args:
        folder: where will be written.
        needed: bytes that will be written at least.
        regained: bytes that will be free, or need not be written, because of what an unfinished merge left.

    Raises:
        IncompleteMergeError: fewer bytes are free.
    """
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize + regained
    if free < needed:
        raise IncompleteMergeError(
            f"the output needs at least {needed} bytes, and {free} are free where it would be. Nothing was published.",
            "Free some space, or choose an output on another file system.",
        )
    return free


@contextlib.contextmanager
def _without_ledger(work: Path) -> Iterator[None]:
    """Take the ledger away for the block, and put it back if that fails: there is then something to go on with.

    It goes before the rename, because who kills a merge right after it would find it in the output. Who kills one right
    before it has to merge again.
    """
    ledger = work / LEDGER_FILE
    said = ledger.read_bytes() if ledger.exists() else None
    ledger.unlink(missing_ok=True)
    published = False
    try:
        yield
        published = True
    finally:
        if said is not None and not published:
            ledger.write_bytes(said)


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
            with _without_ledger(work):
                exchange(work, target.path)
        elif os.path.lexists(target.path):
            raise OutputExistsError(f"the output {target.path.name} appeared while the merge ran; it was left alone.")
        else:
            with _without_ledger(work):
                work.rename(target.path)
    except OSError as error:
        raise failed(target.path.name, error) from error
    # From here on the output is there. Making the rename itself durable is all that is left, and a parent directory
    # that
    # cannot be synced (some network file systems) takes nothing back.
    with contextlib.suppress(OSError):
        sync_directory(target.path.parent)
