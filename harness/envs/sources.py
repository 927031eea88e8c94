"""What a package is built from when no index has it: found once, before anything is planned.

A git reference becomes the commit that it means now, so that a stack never says ``main``. A source tree is built into a
wheel, from a copy, so that nothing appears in the tree; the wheel is kept under the digest of the tree's files. So an
edited tree is another stack, and two runs of the same one agree. A wheel is taken as it is.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from harness.envs.guard import exclusively
from harness.envs.indexes import redact
from harness.envs.interpreter import Interpreter
from harness.envs.layout import CacheLayout
from harness.envs.uv_command import Unresolvable, Uv
from harness.errors import ConfigurationError, EnvironmentFailedError
from harness.matrix.sources import Source, SourceSelector

NOT_BUILT_FROM = (
    ".git",
    ".hg",
    "__pycache__",
    ".venv",
    ".nox",
    ".tox",
    "build",
    "dist",
    ".mypy_cache",
    ".pytest_cache",
)
"""Folders of a tree that are no sources: history, environments, what was built before."""


def build_source(
    uv: Uv, layout: CacheLayout, interpreter: Interpreter, package: str, selector: SourceSelector
) -> tuple[str, Source]:
    """Return the version of what a user named, and what it is built from.

    Args:
        uv: asks repositories and builds.
        layout: the cache, which keeps wheels of trees.
        interpreter: the Python to build for.
        package: which package it has to be.
        selector: what the user named.

    Raises:
        ConfigurationError: it is not there, or it is another package.
        EnvironmentFailedError: a repository is out of reach, or the tree does not build.
    """
    if selector.kind == "git":
        return _commit(uv, interpreter, package, selector.text)
    place = _place(selector.text)
    if selector.kind == "wheel":
        if not _is(Path.is_file, place):
            raise ConfigurationError(f"--{package} {selector.text}: there is no such wheel.", remedy="Give its path.")
        version = _wheel(place, package)
        if not zipfile.is_zipfile(place):
            raise ConfigurationError(
                f"--{package} {selector.text}: it is no wheel, which is a zip archive.",
                remedy="Build or download it again.",
            )
        return version, Source(kind="wheel", digest=_sha256(place), location=place.as_uri())
    if not _is(Path.is_dir, place):
        raise ConfigurationError(
            f"--{package} {selector.text}: there is no such folder.", remedy="Give the path of a source tree."
        )
    if not any((place / name).is_file() for name in ("pyproject.toml", "setup.py")):
        raise ConfigurationError(
            f"--{package} {selector.text}: no source tree: it has neither pyproject.toml nor setup.py.",
            remedy="Give the folder in which one of them is.",
        )
    digest = tree_digest(place)
    wheel = _built(uv, layout, interpreter, package, place, digest)
    return _wheel(wheel, package), Source(kind="path", digest=digest, location=wheel.as_uri())


def tree_digest(root: Path) -> str:
    """Return the SHA-256 over the names and contents of a tree's files, what is no source left out."""
    digest = hashlib.sha256()
    for path in _files(root):
        name = path.relative_to(root).as_posix().encode()
        content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        digest.update(b"%d %s %d\n" % (len(name), name, len(content)) + content)
    return digest.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if path.is_symlink() or path.is_file():
            yield path
        elif path.is_dir() and not _left_out(path.name):
            yield from _files(path)


def _left_out(name: str) -> bool:
    return name in NOT_BUILT_FROM or name.endswith(".egg-info")


def _built(uv: Uv, layout: CacheLayout, interpreter: Interpreter, package: str, place: Path, digest: str) -> Path:
    """Return the wheel of a tree, built now or found again."""
    python = ".".join(interpreter.version.split(".")[:2])
    folder = layout.sources / f"{digest[:24]}-{python}"
    with exclusively(
        layout.guard(f"source-{folder.name}"), waiting=lambda: uv.log(f"another process builds {package}")
    ):
        if found := sorted(folder.glob("*.whl")):
            return found[0]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=layout.sources) as scratch:
            copy, out = Path(scratch) / "tree", Path(scratch) / "wheel"
            ignored = shutil.ignore_patterns(*NOT_BUILT_FROM, "*.egg-info")
            shutil.copytree(place, copy, symlinks=True, ignore=ignored)
            uv(["build", "--wheel", "--python", str(interpreter.python), "--out-dir", str(out), str(copy)])
            wheels = sorted(out.glob("*.whl"))
            if len(wheels) != 1:
                raise EnvironmentFailedError(
                    f"Building {place.name} gave {len(wheels)} wheels instead of one.",
                    remedy="Build it by hand (`uv build --wheel`) and give the wheel.",
                )
            return wheels[0].replace(folder / wheels[0].name)


def _commit(uv: Uv, interpreter: Interpreter, package: str, text: str) -> tuple[str, Source]:
    """Return the version at the commit that a reference means now."""
    options = ["--no-header", "--no-deps", "--python", str(interpreter.python)]
    try:
        said = uv(["pip", "compile", "-", "--format", "pylock.toml", *options], stdin=f"{package} @ {text}\n")
    except Unresolvable as error:
        raise ConfigurationError(
            f"--{package} {redact(text)}: {error.explanation}",
            remedy="See that the reference and the package in it are right.",
        ) from error
    (found,) = tomllib.loads(said)["packages"]
    vcs = found.get("vcs", {})
    commit, address = vcs.get("commit-id"), text.removeprefix("git+")
    if commit is None or "version" not in found:
        raise EnvironmentFailedError(
            f"uv did not say which commit and version {redact(text)} is.", remedy="Name a commit: git+URL@SHA."
        )
    scheme, rest = address.split("://", 1)
    rest, hash_mark, inside = rest.partition("#")
    # An @ before the first slash belongs to the address (ssh://git@host/…); one behind it begins the reference.
    at = rest.find("@", rest.find("/"))
    repository = rest if at < 0 else rest[:at]
    location = f"git+{scheme}://{repository}@{commit}{hash_mark}{inside}"
    return str(Version(found["version"])), Source(kind="git", digest=commit, location=location)


def _is(kind: Callable[[Path], bool], place: Path) -> bool:
    """Say whether something of a kind is there; what no file can be called is not."""
    try:
        return kind(place)
    except (OSError, ValueError):  # a name that is too long, a folder that may not be read, a null character
        return False


def _place(text: str) -> Path:
    path = unquote(urlsplit(text).path) if text.startswith("file:") else text
    return Path(path).expanduser().absolute()


def _wheel(path: Path, package: str) -> str:
    """Return the version that a wheel's name says.

    Raises:
        ConfigurationError: it is no wheel's name, or another package's.
    """
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
    except InvalidWheelFilename:
        raise ConfigurationError(
            f"--{package}: {path.name} is not the name of a wheel.",
            remedy="Give it the name that it was built with, NAME-VERSION-….whl.",
        ) from None
    if name != canonicalize_name(package):
        raise ConfigurationError(
            f"--{package}: {path.name} is a wheel of {name}.", remedy=f"Give a wheel of {package}."
        )
    return str(version)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
