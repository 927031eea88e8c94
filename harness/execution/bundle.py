"""The code a worker runs from: a content-addressed folder that holds what a cell may import and nothing else.

The worker is never installed into a cell's environment, because that would change the resolution being observed. It
must not see the host's packages, because they are not there. So the few subpackages it needs are copied to
``<cache>/code/<sha256>/harness`` and started by path with ``python -I``. The name is the sha256 of the content. So the
same code is copied once, runs in parallel share it, and a result can say exactly which code produced it.

A folder is made beside its final place and renamed, so it is there completely or not at all. One that is there is
compared with the sources before it is used, because caches get cleaned, copied and edited.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import harness
from harness.contract.packages import WORKER_PACKAGES
from harness.errors import HarnessError

SUFFIXES = frozenset({".py", ".jinja", ".json"})
_ATTEMPTS = 3


class BundleError(HarnessError):
    """The worker's code could not be put into the cache."""

    exit_code = 4
    usual_remedy = "Free some space, or name another folder in MOE_LORA_HARNESS_CACHE."


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A published code folder: ``root`` contains ``harness/``, ``sha256`` is over its names and contents."""

    root: Path
    sha256: str

    @property
    def main(self) -> Path:
        """The file that a cell's interpreter is started with."""
        return self.root / "harness" / "worker" / "__main__.py"


def bundle_files(package: Path) -> dict[str, bytes]:
    """Read the files a worker needs from the package ``harness`` at ``package``.

    Returns:
        Contents by POSIX path relative to the folder that holds the package (``harness/worker/__main__.py``), sorted.
    """
    paths = [package / "__init__.py"]
    for name in WORKER_PACKAGES:
        paths += [path for path in (package / name).rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    names = {f"harness/{path.relative_to(package).as_posix()}": path for path in paths}
    return {name: names[name].read_bytes() for name in sorted(names) if "__pycache__" not in names[name].parts}


def digest(files: Mapping[str, bytes]) -> str:
    """Return the sha256 of names and contents.

    Every part is preceded by its length, so that no two sets look alike.
    """
    sha = hashlib.sha256()
    for name in sorted(files):
        for part in (name.encode(), files[name]):
            sha.update(len(part).to_bytes(8, "big"))
            sha.update(part)
    return sha.hexdigest()


def bundle_sha256(package: Path | None = None) -> str:
    """Return the sha256 that ``publish_bundle`` would name the worker's code by, without writing anything."""
    return digest(bundle_files(_package(package)))


def _package(package: Path | None) -> Path:
    return Path(harness.__file__).parent if package is None else package


def publish_bundle(cache: Path, *, package: Path | None = None) -> Bundle:
    """Make sure that ``<cache>/code/<sha256>`` holds the worker's code, and return it. Safe to call concurrently.

    Args:
        cache: the harness's cache directory.
        package: the folder of the package ``harness``; by default the one that is running.

    Raises:
        BundleError: the folder there is not what it should be, and could not be replaced.
    """
    files = bundle_files(_package(package))
    bundle = Bundle(root=cache / "code" / digest(files), sha256=digest(files))
    for _ in range(_ATTEMPTS):
        if bundle.root.is_dir():
            if _holds(bundle.root, files):
                return bundle
            _set_aside(bundle.root)
        _make(bundle.root, files)
    if _holds(bundle.root, files):
        return bundle
    raise BundleError(
        f"The worker's code at {bundle.root} does not stay as it was written.",
        remedy="Is another program cleaning the cache? Give another cache directory, or remove this folder.",
    )


def _holds(root: Path, files: Mapping[str, bytes]) -> bool:
    """Whether ``root`` holds exactly ``files``; byte code that interpreters wrote beside them does not count."""
    there = {
        path.relative_to(root).as_posix(): path
        for path in root.rglob("*")
        if not path.is_dir() and "__pycache__" not in path.parts
    }
    return there.keys() == files.keys() and all(there[name].read_bytes() == files[name] for name in files)


def _make(root: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` beside ``root`` and rename; when somebody else was faster theirs stays."""
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name[:12]}-", dir=root.parent))
    try:
        for name, content in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        temporary.chmod(0o755)
        if not root.exists():
            temporary.rename(root)
    except OSError:
        # Lost the race between the check and the rename (a directory is not renamed over one that is not empty).
        if not root.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _set_aside(root: Path) -> None:
    """Move a folder that is not what its name says out of the way, in one step, then remove it."""
    aside = Path(tempfile.mkdtemp(prefix=".broken-", dir=root.parent))
    try:
        root.replace(aside)  # an empty directory may be replaced by another
    except FileNotFoundError:
        return  # another process has moved it already
    finally:
        shutil.rmtree(aside, ignore_errors=True)
