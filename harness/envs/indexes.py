"""Which package indexes uv is to use: uv's own settings if there are any, otherwise pip's, otherwise nothing is said.

Most machines that cannot reach the public index say so to pip only (``pip.conf``, ``PIP_*``), and uv does not read
that. So pip's settings are read as pip reads them. Files come from the most general to the most particular, and the
environment outranks all of them. ``[install]`` outranks ``[global]``. They are translated into the variables that uv
reads, with pip's meaning: all indexes are equal (``UV_INDEX_STRATEGY=unsafe-best-match``). When uv has been told
anything about indexes itself, pip's settings are left alone entirely. When neither says anything, nothing is handed
over and uv's default stands.

Addresses can hold credentials. They travel in environment variables only, never on a command line, and everything that
is shown, logged or hashed has been through :func:`redact`.

Standard library only, and no import of ours: ``noxfile.py`` loads this file by path, before anything is installed.
"""

import ast
import configparser
import hashlib
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

# No `from __future__ import annotations` here: dataclasses look string annotations up in sys.modules. A module that was
# loaded by path need not be there.

UV_INDEX_VARIABLES = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_NO_INDEX",
)
"""Any of them set means that uv has been told where packages come from."""
UV_POLICY_VARIABLES = ("UV_INDEX_STRATEGY", "UV_EXCLUDE_NEWER")
"""They do not say where packages come from, but change what is found. So they count for the digest.

``UV_OFFLINE`` does not count. So what was resolved on the network can be reused without it.
"""
UV_INDEX_KEYS = ("index", "index-url", "extra-index-url", "find-links", "no-index")
"""The same in ``uv.toml``, at its top level or under ``[pip]``."""
PIP_NOT_INDEXES = ("constraint", "no-binary", "only-binary", "pre", "prefer-binary", "target", "user")
"""pip settings about *what* is installed. A stack says that, so they are left out, and said to be."""

_CREDENTIALS = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s'\"<>?#]*@")
_QUERY = re.compile(r"(?P<address>[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>?]*)\?[^\s'\"<>]+")


class IndexSettingsError(Exception):
    """A configuration file of pip or uv that cannot be understood.

    The message names the file, and ``remedy`` says what to do.
    """

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """What uv is to be told about package indexes.

    Attributes:
        source: whose settings these are. ``uv`` and ``none`` hand nothing over.
        environment: variables to add to uv's environment. May hold credentials: never show it.
        options: options for uv's command line, for the one setting that has no variable (``--no-index``).
        decisions: what was read and decided, one redacted line each, for ``harness doctor`` and the log.
        digest: hex SHA-256 over everything that can change a resolution. Credentials are redacted first, so that a new
            token does not make a new environment.
    """

    source: Literal["uv", "pip", "none"]
    environment: Mapping[str, str] = field(repr=False)
    options: tuple[str, ...] = ()
    decisions: tuple[str, ...] = ()
    digest: str = ""


def redact(text: str) -> str:
    """Return ``text`` with the credentials and the query strings of every address in it replaced by ``***``."""
    return _QUERY.sub(r"\g<address>?***", _CREDENTIALS.sub(r"\g<scheme>***@", text))


def read_index_settings(
    environ: Mapping[str, str] | None = None, *, prefix: Path | None = None, system: Path = Path("/")
) -> IndexSettings:
    """Decide what uv is told about package indexes.

    Args:
        environ: the environment to read; this process's by default.
        prefix: the Python prefix whose ``pip.conf`` counts as pip's *site* file; this interpreter's by default.
        system: the root that system-wide files are looked for under; only tests give another.

    Raises:
        IndexSettingsError: a configuration file of pip or uv is malformed.
    """
    env = dict(os.environ if environ is None else environ)
    policy = {name: env[name] for name in UV_POLICY_VARIABLES if env.get(name)}
    uv_files = list(_read_uv_files(env, system))
    decisions = [f"read {path}" for path, _ in uv_files]
    # uv acts on whatever a uv.toml says (a resolution strategy, a cut-off date). So all of it is part of the digest.
    policy |= {f"uv.toml {number}": json.dumps(content, default=str) for number, (_, content) in enumerate(uv_files)}

    told_uv = {name: env[name] for name in UV_INDEX_VARIABLES if env.get(name)}
    told_uv |= {
        f"{key} in {path}": value for path, content in uv_files for key, value in _uv_index_keys(content).items()
    }
    if told_uv:
        decisions += [f"uv: {name} = {redact(value)}" for name, value in told_uv.items()]
        decisions.append("uv has index settings of its own: they stand, and pip's are not looked at")
        return IndexSettings(
            source="uv", environment={}, decisions=tuple(decisions), digest=_digest("uv", told_uv | policy, ())
        )

    pip, notes = read_pip_settings(env, prefix=Path(sys.prefix) if prefix is None else prefix, system=system)
    variables, options, more_notes = translate(pip, env)
    decisions += [*notes, *more_notes]
    decisions += [f"uv is given {name}={redact(value)}" for name, value in variables.items()]
    decisions += [f"uv is given {option}" for option in options]
    source: Literal["pip", "none"] = "pip" if variables or options else "none"
    if source == "none":
        decisions.append("neither uv nor pip says anything about indexes: nothing is handed over, uv's default stands")
    return IndexSettings(
        source=source,
        environment=variables,
        options=options,
        decisions=tuple(decisions),
        digest=_digest(source, variables | policy, options),
    )


def read_pip_settings(
    env: Mapping[str, str], *, prefix: Path, system: Path = Path("/")
) -> tuple[dict[str, str], list[str]]:
    """Return pip's settings for ``pip install`` as ``{option without dashes: raw text}``, and notes on the files read.

    The order is pip's (``pip._internal.configuration``, pip 26): system, user, site, ``PIP_CONFIG_FILE``, then the
    environment. Each outranks the one before. An existing ``PIP_CONFIG_FILE`` replaces the user's file. The null device
    stands for no file at all. Empty values count as not set.
    """
    settings: dict[str, str] = {}
    notes: list[str] = []
    for path in _pip_files(env, prefix, system):
        parser = configparser.RawConfigParser()
        try:
            with path.open(encoding="utf-8") as stream:
                parser.read_file(stream)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
        except OSError as error:
            notes.append(f"{path} cannot be read ({error.strerror}): pip would pass over it too")
            continue
        except (configparser.Error, UnicodeDecodeError) as error:
            raise IndexSettingsError(
                f"pip's configuration file {path} is malformed: {redact(' '.join(str(error).split()))}",
                remedy="Mend it (`python -m pip config debug` names every file), or set PIP_CONFIG_FILE to another "
                "file.",
            ) from error
        notes.append(f"read {path}")
        for section in ("global", "install"):
            if parser.has_section(section):
                settings |= {_option(key): value for key, value in parser.items(section) if value}
    settings |= {
        _option(name.removeprefix("PIP_")): value
        for name, value in sorted(env.items())
        if name.startswith("PIP_") and value and name not in {"PIP_CONFIG_FILE", "PIP_VERSION", "PIP_HELP"}
    }
    return settings, notes


def translate(pip: Mapping[str, str], env: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...], list[str]]:
    """Return (variables for uv, options for uv, notes) that mean what pip's settings mean.

    A variable that ``env`` already has is uv's own setting and is not overruled.
    """
    variables: dict[str, str] = {}
    options: tuple[str, ...] = ()
    notes: list[str] = []
    places: dict[str, str] = {}

    if _is_true(pip.get("no-index", "")):
        options = ("--no-index",)
    else:
        if index := _text(pip.get("index-url", "")):
            places["UV_DEFAULT_INDEX"] = _address(index)
        if extra := _words(pip.get("extra-index-url", "")):
            places["UV_INDEX"] = " ".join(_address(word) for word in extra)
    links, dropped = _find_links(_words(pip.get("find-links", "")))
    notes += dropped
    if links:
        places["UV_FIND_LINKS"] = ",".join(links)
    variables |= places
    if places or options:
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    variables |= _network(pip, notes)
    kept = [name for name in variables if env.get(name)]
    notes += [f"{name} is already set in the environment and stays" for name in kept]
    for name in kept:
        del variables[name]
    notes += [
        f"pip's {name!r} is not handed over: it changes what is installed, and a stack says that itself"
        for name in PIP_NOT_INDEXES
        if name in pip
    ]
    return variables, options, notes


def _network(pip: Mapping[str, str], notes: list[str]) -> dict[str, str]:
    """Return the variables that carry pip's certificates, proxy, timeout and retries.

    What cannot be used is added to ``notes``.
    """
    variables: dict[str, str] = {}
    if cert := _text(pip.get("cert", "")):
        path = _at_home(cert)
        if path.exists():
            variables["SSL_CERT_DIR" if path.is_dir() else "SSL_CERT_FILE"] = str(path)
        else:
            notes.append(f"pip's certificate file {cert} does not exist: not handed over")
    if client := _text(pip.get("client-cert", "")):
        variables["SSL_CLIENT_CERT"] = str(_at_home(client))
    if hosts := _words(pip.get("trusted-host", "")):
        variables["UV_INSECURE_HOST"] = " ".join(hosts)
    if proxy := _text(pip.get("proxy", "")):
        address = proxy if "://" in proxy else f"http://{proxy}"
        variables |= {"HTTP_PROXY": address, "HTTPS_PROXY": address}
    for name, variable in (("timeout", "UV_HTTP_TIMEOUT"), ("retries", "UV_HTTP_RETRIES")):
        value = _text(pip.get(name, "") or pip.get(f"default-{name}", ""))
        if value.removesuffix(".0").isdigit():
            variables[variable] = value.removesuffix(".0")
    if _text(pip.get("keyring-provider", "")) == "subprocess":
        variables["UV_KEYRING_PROVIDER"] = "subprocess"
    return variables


def _find_links(words: list[str]) -> tuple[list[str], list[str]]:
    """Split pip's find-links into what uv can be given and notes on what it cannot: uv dies on a missing folder."""
    links, notes = [], []
    for word in words:
        parts = urlsplit(word)
        if parts.scheme and parts.scheme != "file":
            links.append(word.replace(",", "%2C"))
            continue
        path = Path(unquote(parts.path)) if parts.scheme else _at_home(word).absolute()
        if not path.exists():
            notes.append(
                f"find-links {word} does not exist: left out, because uv refuses to start with a missing folder"
            )
        elif not os.access(path, os.R_OK):
            notes.append(f"find-links {word} cannot be read: left out, because uv refuses to start with such a folder")
        else:
            # uv's list is comma-separated; as an address, a comma in a folder's name can be escaped.
            links.append(path.as_uri().replace(",", "%2C") if "," in str(path) else str(path))
    return links, notes


def _pip_files(env: Mapping[str, str], prefix: Path, system: Path) -> Iterator[Path]:
    chosen = env.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return
    home = Path(env.get("HOME") or Path.home())
    for folder in (env.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep):
        yield system / folder.lstrip("/") / "pip" / "pip.conf"
    if sys.platform == "darwin":
        yield system / "Library/Application Support/pip/pip.conf"
    yield system / "etc/pip.conf"
    if not (chosen and Path(chosen).exists()):
        yield home / ".pip" / "pip.conf"
        mac = home / "Library/Application Support/pip"
        if sys.platform == "darwin" and mac.is_dir():
            yield mac / "pip.conf"
        else:
            yield Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    yield prefix / "pip.conf"
    if chosen:
        yield Path(chosen)


def _read_uv_files(env: Mapping[str, str], system: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the ``uv.toml`` files that uv will read. Those of a project are not among them: uv is run outside any."""
    if _is_true(env.get("UV_NO_CONFIG", "")):
        return
    if env.get("UV_CONFIG_FILE"):
        files = [Path(env["UV_CONFIG_FILE"])]
    else:
        home = Path(env.get("HOME") or Path.home())
        folders = [Path(folder) for folder in (env.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)]
        system_files = [system / str(folder).lstrip("/") / "uv" / "uv.toml" for folder in folders]
        system_files.append(system / "etc/uv/uv.toml")
        files = [Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "uv" / "uv.toml"]
        files += [path for path in system_files if path.is_file()][:1]
    for path in files:
        if path.is_file():
            try:
                yield path, tomllib.loads(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
                raise IndexSettingsError(
                    f"uv's configuration file {path} cannot be read: {redact(str(error))}",
                    remedy="Mend it, name another in UV_CONFIG_FILE, or set UV_NO_CONFIG=1.",
                ) from error


def _uv_index_keys(content: dict[str, Any]) -> dict[str, str]:
    pip = content.get("pip", {})
    tables = (content, pip if isinstance(pip, dict) else {})
    return {key: json.dumps(table[key], default=str) for table in tables for key in UV_INDEX_KEYS if table.get(key)}


def _digest(source: str, values: Mapping[str, str], options: tuple[str, ...]) -> str:
    # Timeouts and certificates do not change what is found. Counting them would only make environments needlessly.
    relevant = {
        name: redact(value)
        for name, value in values.items()
        if not name.startswith(("SSL_", "UV_HTTP_", "UV_KEYRING", "UV_INSECURE", "HTTP"))
    }
    return hashlib.sha256(json.dumps([source, relevant, options], sort_keys=True).encode()).hexdigest()


def _option(name: str) -> str:
    """Spell an option as pip does: ``Extra_Index_URL`` and ``--extra-index-url`` are ``extra-index-url``."""
    return name.lower().replace("_", "-").removeprefix("--")


def _text(raw: str) -> str:
    """Return a single value; ``pip config list`` prints values as Python literals, and they get pasted back so."""
    stripped = raw.strip()
    if len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "'\"":
        try:
            value = ast.literal_eval(stripped)
        except (SyntaxError, ValueError):
            return stripped
        return str(value).strip()
    return stripped


def _words(raw: str) -> list[str]:
    return _text(raw).split()


def _is_true(raw: str) -> bool:
    return _text(raw).lower() in {"1", "true", "yes", "on", "y", "t"}


def _address(word: str) -> str:
    """Return an index address; pip takes a local folder too, and so does uv once it is an address."""
    path = _at_home(word)
    return path.absolute().as_uri() if "://" not in word and os.path.exists(path) else word  # noqa: PTH110 - false for what no file can be called


def _at_home(word: str) -> Path:
    """Return a path with ``~`` read as a home directory; one of nobody's stays as it is, as pip leaves it."""
    return Path(os.path.expanduser(word))  # noqa: PTH111 - Path.expanduser raises for it
