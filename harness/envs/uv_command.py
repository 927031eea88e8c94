"""Running uv: one place that finds it, gives it a clean environment, logs every command and sorts its failures.

uv ends with 1 both when the requirements contradict each other and when it was not allowed to ask. It ends with 2 for
everything else. So its words decide which of two things happened. Either the *stack* is impossible:
:class:`Unresolvable`, an outcome of a cell, with uv's own explanation. Or the *environment* could not be made here:
:class:`~harness.errors.EnvironmentFailedError`, exit 4. The wording is that of uv 0.8 to 0.13.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import uv
from packaging.utils import canonicalize_name

from harness.envs.indexes import IndexSettings, IndexSettingsError, read_index_settings, redact
from harness.errors import ConfigurationError, EnvironmentFailedError

Log = Callable[[str], None]

TIME_LIMIT = 3600.0
"""Seconds after which a uv command is stopped.

A full CUDA stack over a slow line fits, and a hang does not go on for ever.
"""

KEPT_UV_VARIABLES = (
    "UV_CACHE_DIR", "UV_CONFIG_FILE", "UV_DEFAULT_INDEX", "UV_EXCLUDE_NEWER", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS",
    "UV_INSECURE_HOST", "UV_KEYRING_PROVIDER", "UV_LINK_MODE", "UV_LOCK_TIMEOUT", "UV_NATIVE_TLS", "UV_NO_CACHE",
    "UV_NO_CONFIG", "UV_NO_INDEX", "UV_OFFLINE", "UV_PYTHON_INSTALL_DIR", "UV_PYTHON_PREFERENCE", "UV_REQUEST_TIMEOUT",
    "UV_SYSTEM_CERTS",
)  # fmt: skip
"""Where packages come from and how they travel. Any other UV_* could change what is resolved or installed."""
KEPT_UV_PREFIXES = ("UV_INDEX", "UV_HTTP_", "UV_CONCURRENT_")
DROPPED_PREFIXES = ("UV_", "PIP_", "PYTHON", "CONDA_", "VIRTUAL_ENV", "__PYVENV")
"""A surrounding environment must not decide which interpreter or which packages a stack gets."""


class Unresolvable(Exception):  # noqa: N818 - it is an outcome of a cell, named as that outcome, not an error of ours
    """The requirements cannot all be met, though each of the pinned versions exists.

    Attributes:
        explanation: uv's own words, redacted.
    """

    def __init__(self, explanation: str) -> None:
        super().__init__(explanation)
        self.explanation = explanation

    def says_missing(self, package: str) -> bool:
        """Return whether the explanation is that no index has ``package``, or has no such version of it."""
        name = re.escape(canonicalize_name(package))
        words = " ".join(self.explanation.split())
        return bool(
            re.search(rf"there (?:is|are) no versions? of {name}(?![\w-])", words)
            or re.search(rf"only {name}(?![\w-])\S* (?:is|are) available", words)
            or re.search(rf"(?<![\w-]){name} was not found in the", words)
        )


class UvRunner(Protocol):
    """What the rest of this package needs of uv."""

    def __call__(self, arguments: Sequence[str], *, stdin: str | None = None) -> str:
        """Run uv and return its standard output."""
        ...


@dataclass(frozen=True, kw_only=True)
class Said:
    """What uv said when it succeeded: its standard output, and its warnings, redacted, without their first word."""

    text: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Uv:
    """uv with its settings: call it with arguments and get its standard output.

    Attributes:
        binary: the executable.
        version: as ``0.13.8``.
        indexes: what it is told about package indexes.
        folder: where it runs: a folder of ours, so that it finds no project whose settings it would take over.
        environment: everything it sees.
        log: receives each command before it runs.
    """

    binary: Path
    version: str
    indexes: IndexSettings
    folder: Path
    environment: Mapping[str, str]
    log: Log

    def __call__(self, arguments: Sequence[str], *, stdin: str | None = None) -> str:
        """Run ``uv`` with ``arguments`` and return its standard output; see :meth:`run`."""
        return self.run(arguments, stdin=stdin).text

    def run(self, arguments: Sequence[str], *, stdin: str | None = None) -> Said:
        """Run ``uv`` with ``arguments``.

        Raises:
            Unresolvable: the requirements contradict each other, or name what no index has.
            EnvironmentFailedError: anything else that made it fail.
        """
        options = self.indexes.options if arguments[0] in {"pip", "build"} else ()
        command = [str(self.binary), *arguments, *options]
        given = f"printf '%s\\n' {shlex.join(stdin.split())} | " if stdin is not None else ""
        self.log(redact(f"$ {given}{shlex.join(command)}"))
        try:
            done = subprocess.run(
                command,
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=False,
                cwd=self.folder,
                env=dict(self.environment),
                timeout=TIME_LIMIT,
            )
        except subprocess.TimeoutExpired as error:
            raise EnvironmentFailedError(
                f"`uv {arguments[0]} {arguments[1]}` was still running after {TIME_LIMIT:.0f} s and was stopped.",
                remedy="An index or a proxy may be accepting connections without answering: see `harness doctor`.",
            ) from error
        except OSError as error:
            raise EnvironmentFailedError(
                f"uv could not be started: {error}.",
                remedy="Install it again: `python -m pip install --force-reinstall uv`.",
            ) from error
        if done.returncode != 0:
            raise failure(done.returncode, done.stderr)
        lines = (redact(line.strip()) for line in done.stderr.splitlines())
        warnings = tuple(line.removeprefix("warning:").strip() for line in lines if line.startswith("warning:"))
        return Said(text=done.stdout, warnings=warnings)


def find_uv(folder: Path, log: Log | None = None, environ: Mapping[str, str] | None = None) -> Uv:
    """Find the uv that is installed beside us and read the settings it will run with.

    Args:
        folder: a folder of ours for it to run in; made when it is missing.
        log: receives each command before it runs.
        environ: the environment to start from; this process's by default.

    Raises:
        EnvironmentFailedError: there is no uv, or ``folder`` cannot be made.
        ConfigurationError: a configuration file of pip or uv is malformed.
    """
    env = dict(os.environ if environ is None else environ)
    try:
        binary = Path(uv.find_uv_bin())
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (FileNotFoundError, OSError, subprocess.SubprocessError) as error:
        raise EnvironmentFailedError(
            f"uv, which makes the environments, cannot be run: {error}.",
            remedy="It is a dependency of this package: `python -m pip install --force-reinstall uv`.",
        ) from error
    try:
        indexes = read_index_settings(env)
    except IndexSettingsError as error:
        raise ConfigurationError(error.message, remedy=error.remedy) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # uv looks for a project from its working folder upwards and takes over its settings. This file ends the search.
        (folder / "uv.toml").write_text("# Ends uv's search for a project's settings.\n", encoding="utf-8")
    except OSError as error:
        raise EnvironmentFailedError(
            f"The cache folder cannot be written: {error}.",
            remedy="Free some space or name another folder in MOE_LORA_HARNESS_CACHE.",
        ) from error
    return Uv(
        binary=binary,
        version=said.split()[1],
        indexes=indexes,
        folder=folder,
        environment=uv_environment(env, indexes),
        log=log or (lambda _line: None),
    )


def uv_environment(environ: Mapping[str, str], indexes: IndexSettings) -> dict[str, str]:
    """Return the environment that uv runs in.

    It is the user's, less what would change what is resolved, plus the index settings.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(DROPPED_PREFIXES) or name in KEPT_UV_VARIABLES or name.startswith(KEPT_UV_PREFIXES)
    }
    fixed = {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}
    return {"UV_LINK_MODE": "hardlink", **kept, **indexes.environment, **fixed}


REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"No space left on device|Disk quota exceeded|os error 28\b",
        (
            "The disk is full: free some space (`harness env clean` frees what is not in use) or name another folder "
            "in MOE_LORA_HARNESS_CACHE, and UV_CACHE_DIR for uv's own."
        ),
    ),
    (
        r"Hash mismatch",
        (
            "An index serves other bytes under the same version than when the lock was made (a rebuilt wheel, a proxy "
            "that alters files): `harness env clean --locks` forgets the lock, or choose another index."
        ),
    ),
    (
        r"network was disabled",
        (
            "uv was told to stay offline (UV_OFFLINE, or `offline` in uv.toml) and its cache does not hold the "
            "package: allow the network once."
        ),
    ),
    (
        r"\b40[13]\b|authentication credentials",
        (
            "An index refused the credentials: check user name, password or token in pip's or uv's settings (`harness "
            "doctor` lists them, redacted)."
        ),
    ),
    (
        r"invalid peer certificate|UnknownIssuer|SSL_CERT",
        (
            "The index's certificate is not trusted here: name your authority's certificate in SSL_CERT_FILE, or in "
            "pip's `cert`."
        ),
    ),
    (
        r"--find-links",
        "A find-links folder is missing or unreadable: make it, or take it out of UV_FIND_LINKS.",
    ),
    (
        r"No interpreter found|Failed to inspect Python|Querying Python",
        "Install that Python, or choose one that is there; uv is never let download one.",
    ),
    (
        r"Failed to (?:initialize|open|read|write).*cache|Permission denied|Read-only file system",
        "A folder cannot be written: check its owner, or name others in UV_CACHE_DIR and MOE_LORA_HARNESS_CACHE.",
    ),
    (
        r"Failed to build|build backend",
        (
            "A package has no wheel for this machine and could not be built from source: use another Python or "
            "platform, or give a wheel in a find-links folder."
        ),
    ),
    (
        r"Failed to fetch|error sending request|dns error|timed out|Connection",
        (
            "A package index is out of reach: check the network, proxy and index settings (`harness doctor` lists what "
            "was decided), or name a mirror in PIP_INDEX_URL or UV_DEFAULT_INDEX."
        ),
    ),
)
"""(what uv says, what to do about it): the first that matches is shown."""

_NOT_ASKED = re.compile(r"network was disabled|lack of valid authentication credentials|returned a 40[13]")


def failure(code: int, stderr: str) -> Unresolvable | EnvironmentFailedError:
    """Sort a failed uv command by its exit code and words.

    "No solution" is the stack's own only when every index could be asked. A package may be missing because uv was
    offline or was refused (401, 403). That says nothing about the stack.
    """
    words = redact(explain(stderr))
    unasked = "not found in the" in words and _NOT_ASKED.search(words)
    if "No solution found" in words and not unasked:
        return Unresolvable(words)
    remedy = next((text for pattern, text in REMEDIES if re.search(pattern, words)), "Run the logged command by hand.")
    return EnvironmentFailedError(f"uv failed (exit code {code}): {words or 'it said nothing'}", remedy=remedy)


def explain(stderr: str) -> str:
    """Return the part of uv's standard error that explains.

    It goes from ``error:`` on, hints included. Prefixes and wrapping are gone.
    """
    lines = stderr.replace("\r", "").splitlines()
    start = next(
        (
            number
            for number, line in enumerate(lines)
            if line.lstrip().startswith(("error:", "\N{MULTIPLICATION SIGN}"))
        ),
        0,
    )
    cleaned = [re.sub(r"^\s*(?:error:|[\u00d7╰│├]+[─▶]*|cause:)?\s*", "", line) for line in lines[start:]]
    return "\n".join(line for line in cleaned if line)
