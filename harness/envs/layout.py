"""Where things lie in the cache folder. Everything in it can be made again, so it may be deleted at any time."""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from harness.errors import EnvironmentFailedError

CACHE_VARIABLE = "MOE_LORA_HARNESS_CACHE"


def cache_dir() -> Path:
    """Return the cache folder: ``MOE_LORA_HARNESS_CACHE`` if set, else the user's cache directory.

    It need not exist.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    return Path(platformdirs.user_cache_dir("moe-lora-harness", appauthor=False))


def results_folder() -> Path:
    """Return where results are kept for later runs, in the cache folder. It need not exist."""
    return CacheLayout(cache_dir()).results


@dataclass(frozen=True)
class CacheLayout:
    """The folders of a cache whose root is ``root``."""

    root: Path

    @property
    def environments(self) -> Path:
        """One folder per environment, named by its key."""
        return self.root / "environments"

    @property
    def locks(self) -> Path:
        """``<key>.txt``, the lock itself, and ``<key>.json``, how its torch was chosen."""
        return self.root / "locks"

    @property
    def known_versions(self) -> Path:
        """``<digest of the index settings>.json``: the releases that those indexes are known to offer."""
        return self.root / "known-versions"

    @property
    def releases(self) -> Path:
        """``<digest of the index settings>-<Python>/<package>.json``: what those indexes offered, and when."""
        return self.root / "releases"

    @property
    def sources(self) -> Path:
        """``<digest>/<wheel>``: what source trees were built into."""
        return self.root / "sources"

    @property
    def results(self) -> Path:
        """``<first two digits>/<key>.json`` and ``.log``: results that are kept for later runs."""
        return self.root / "results"

    @property
    def working_folder(self) -> Path:
        """Where uv runs."""
        return self.root / "uv"

    def guard(self, name: str) -> Path:
        """Return the guard file of something in the cache (see ``guard``)."""
        return self.root / "guards" / name


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader finds either the old file or all of the new one.

    Raises:
        EnvironmentFailedError: the disk is full or the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            beside.unlink()
        raise EnvironmentFailedError(
            f"The cache folder cannot be written: {error}.",
            remedy=f"Free some space (`harness env clean`), or name another folder in {CACHE_VARIABLE}.",
        ) from error
