"""Which Python makes an environment: the one asked for by ``major.minor``, or the one that runs the harness.

uv is never let download a Python: what a machine has is what it is tested with. One that uv manages comes first. Where
uv meets a program that does not run, the next that does is taken (``candidates``). An interpreter is described by
asking it, in isolated mode. So the same words are used for the running one and for any other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.envs.candidates import python_candidates
from harness.envs.uv_command import Uv
from harness.errors import ConfigurationError, EnvironmentFailedError

_DESCRIBE = """
import importlib.metadata, json, os, platform, sys, sysconfig
found = importlib.metadata.distributions() if WANTED else ()
versions = {d.metadata["Name"]: d.version for d in found if d.metadata["Name"]}
print(json.dumps({
    "python": sys.executable, "version": platform.python_version(),
    "implementation": platform.python_implementation(), "abi": sysconfig.get_config_var("SOABI") or "",
    "platform": sysconfig.get_platform(), "libc": "-".join(platform.libc_ver()), "prefix": sys.prefix,
    "home": os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable), "versions": versions,
}))
"""
TIME_LIMIT = 120.0
"""Seconds. An interpreter on a cold network disk takes several."""


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A Python and what decides which packages fit it.

    Attributes:
        python: the executable that was asked.
        version: as ``3.11.2``.
        implementation: as ``CPython``.
        abi: as ``cpython-311-x86_64-linux-gnu``; a free-threaded or a debug build has another.
        platform: as ``linux-x86_64`` (``sysconfig.get_platform``).
        libc: as ``glibc-2.36``, or ``-`` where there is none to speak of.
        prefix: its ``sys.prefix``.
        home: the real path of the base interpreter, which an environment's ``python`` is a link to.
        versions: what is installed for it, name to version; empty unless asked for.
    """

    python: Path
    version: str
    implementation: str
    abi: str
    platform: str
    libc: str
    prefix: Path
    home: Path
    versions: dict[str, str]

    @property
    def tag(self) -> str:
        """What a lock depends on, in one word.

        Such as ``CPython-3.11.2-cpython-311-x86_64-linux-gnu-linux-x86_64-glibc-2.36``.
        """
        return f"{self.implementation}-{self.version}-{self.abi}-{self.platform}-{self.libc}"


def describe(python: Path, *, with_versions: bool = False) -> Interpreter:
    """Ask an interpreter what it is.

    Args:
        python: the executable.
        with_versions: whether to ask for the installed distributions as well.

    Raises:
        ConfigurationError: ``python`` is not there, is no Python, or does not answer.
    """
    remedy = "Give the path of an interpreter, such as the `bin/python` of a virtual environment."
    if python.is_dir():
        inside = python / "bin" / "python"
        hint = f"Did you mean {inside}?" if inside.exists() else remedy
        raise ConfigurationError(f"{python} is a folder, not a Python interpreter.", remedy=hint)
    if not python.exists():
        raise ConfigurationError(f"There is no {python}.", remedy=remedy)
    command = [str(python), "-I", "-c", f"WANTED = {with_versions}\n{_DESCRIBE}"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=TIME_LIMIT
        )
        told = json.loads(done.stdout)
        return Interpreter(
            python=Path(told["python"]),
            version=told["version"],
            implementation=told["implementation"],
            abi=told["abi"],
            platform=told["platform"],
            libc=told["libc"],
            prefix=Path(told["prefix"]),
            home=Path(told["home"]),
            versions=dict(sorted(told["versions"].items())),
        )
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines() or [f"exit code {error.returncode}"]
        # Of a traceback the end says what it was, of anything else the beginning.
        said = lines[-1 if lines[0].startswith("Traceback") else 0].strip()
        raise ConfigurationError(f"{python} does not run as a Python interpreter: {said}", remedy=remedy) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(f"{python} did not answer within {TIME_LIMIT:.0f} s.", remedy=remedy) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{python} is no Python interpreter: {error}.", remedy=remedy) from error


def find_interpreter(uv: Uv, version: str | None) -> Interpreter:
    """Return the interpreter that makes an environment.

    Args:
        uv: finds other versions than the running one on this machine; it never downloads.
        version: ``major.minor``, or None for the interpreter that runs this.

    Raises:
        EnvironmentFailedError: this machine has no such Python; what was passed over is named, each with its words.
    """
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version is None or version == running:
        return describe(Path(sys.executable))
    passed_over: list[str] = []
    try:
        return describe(Path(uv(["python", "find", version, "--system", "--no-project"]).strip()))
    except (EnvironmentFailedError, ConfigurationError) as error:
        first = error
    for path in python_candidates(version):
        try:
            found = describe(path)
        except ConfigurationError as error:
            passed_over.append(error.message)
            continue
        if found.version.split(".")[:2] == version.split("."):
            uv.log(f"Python {version}: {path}; {' '.join(passed_over) or first.message}")
            return found
        passed_over.append(f"{path} is Python {found.version}.")
    raise EnvironmentFailedError(
        f"Python {version} was asked for and cannot be used here. {' '.join(passed_over) or first.message}",
        remedy=f"Install Python {version}, or leave the version away to use Python {running}.",
    ) from first
