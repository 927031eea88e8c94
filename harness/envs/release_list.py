"""Which releases the configured indexes offer, asked through uv and remembered with the time of asking.

uv knows the indexes, their credentials, certificates and proxies, so it does the asking: what is the newest release
that is not among those known already? Asked again and again this gives all of them, each with the time of its upload
where the index says it (PEP 700), and none that is yanked or does not fit the Python. Afterwards one question shows
whether there is anything new. Where the indexes are out of reach the last answer is used, and its age is said.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import Version

from harness.contract.supported import OLDEST
from harness.envs.guard import exclusively
from harness.envs.interpreter import Interpreter
from harness.envs.layout import CacheLayout, write_atomically
from harness.envs.uv_command import Unresolvable, Uv
from harness.errors import EnvironmentFailedError, VersionNotFoundError
from harness.matrix.releases import Offer, Release, age, newest_first, utc

FRESH_FOR = timedelta(minutes=30)
"""An answer of this age is today's."""
WHOLE_FOR = timedelta(days=7)
"""After this all releases are asked for anew: one may have been yanked."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is remembered of a package: ``whole`` is when all its releases were asked for, None when some were."""

    asked: datetime
    whole: datetime | None
    releases: tuple[Release, ...]


@dataclass(frozen=True, kw_only=True)
class ReleaseList:
    """The releases that one set of indexes offers to one interpreter.

    Attributes:
        uv: does the asking.
        layout: the cache, which remembers.
        interpreter: the Python that releases must fit.
        now: the clock.
    """

    uv: Uv
    layout: CacheLayout
    interpreter: Interpreter
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def offer(self, package: str) -> Offer:
        """Return all releases of ``package`` that the harness supports, pre-releases too.

        Raises:
            VersionNotFoundError: no index has any.
            EnvironmentFailedError: an index is out of reach, and nothing is remembered.
        """
        with exclusively(self.layout.guard(f"releases-{package}"), waiting=lambda: None):
            known, now = self._read(package), self.now()
            complete = known if known is not None and known.whole is not None else None
            if complete is not None and now - complete.asked < FRESH_FOR:
                return Offer(package=package, releases=complete.releases, asked=complete.asked)
            anew = complete is None or complete.whole is None or now - complete.whole > WHOLE_FOR
            before = () if complete is None else complete.releases
            if complete is None:
                self.uv.log(f"asking the package indexes for all releases of {package}: once, they are remembered")
            try:
                releases = newest_first(self._all(package, () if anew else before))
            except EnvironmentFailedError as error:
                if complete is None:
                    raise
                return Offer(
                    package=package,
                    releases=complete.releases,
                    asked=complete.asked,
                    stale=_stale(error, complete, now),
                )
            whole = now if anew else (complete.whole if complete is not None else now)
            self._write(package, _Known(asked=now, whole=whole, releases=releases))
        had = {release.version for release in before}
        new = tuple(it.version for it in releases if it.version not in had) if before else ()
        return Offer(package=package, releases=releases, asked=now, new=new)

    def newest(self, package: str, *, pre: bool = False) -> tuple[str, str | None]:
        """Return the newest release of ``package``, and what should be known of the answer; see :meth:`_extreme`."""
        return self._extreme(package, pre=pre, lowest=False)

    def oldest(self, package: str, *, pre: bool = False) -> tuple[str, str | None]:
        """Return the oldest supported release of ``package``; see :meth:`_extreme`."""
        return self._extreme(package, pre=pre, lowest=True)

    def uploaded(self, pins: dict[str, str]) -> dict[str, datetime | None]:
        """Return when each of the pinned versions was uploaded, None where the index does not say."""
        found = self._ask([f"{name}=={version}" for name, version in sorted(pins.items())], pre=True)
        return {name: release.uploaded for name, release in found.items()}

    def _extreme(self, package: str, *, pre: bool, lowest: bool) -> tuple[str, str | None]:
        """Ask for one end of the list alone: one question.

        Raises:
            VersionNotFoundError: no index has any release that fits.
            EnvironmentFailedError: an index is out of reach, and nothing is remembered.
        """
        known, now = self._read(package), self.now()
        options = ["--resolution", "lowest"] if lowest else []
        try:
            found = self._ask([_supported(package)], pre=pre, options=options)[package]
        except Unresolvable as error:
            raise _nothing_offered(package, error) from error
        except EnvironmentFailedError as error:
            usable = [it for it in known.releases if pre or not it.number.is_prerelease] if known is not None else []
            if known is None or not usable:
                raise
            return usable[-1 if lowest else 0].version, f"{package}: {_stale(error, known, now)}"
        before = known or _Known(asked=now, whole=None, releases=())
        self._write(package, replace(before, releases=newest_first((*before.releases, found))))
        return found.version, None

    def _all(self, package: str, known: Sequence[Release]) -> list[Release]:
        """Return ``known`` and every release that is not among them."""
        found = list(known)
        while True:
            excluded = ",".join(f"!={release.version}" for release in found)
            try:
                found.append(self._ask([f"{_supported(package)}{excluded and ','}{excluded}"], pre=True)[package])
            except Unresolvable as error:
                if not found:
                    raise _nothing_offered(package, error) from error
                return found

    def _ask(self, requirements: Iterable[str], *, pre: bool, options: Sequence[str] = ()) -> dict[str, Release]:
        arguments = ["pip", "compile", "-", "--no-header", "--no-deps", "--format", "pylock.toml"]
        arguments += [
            "--python",
            str(self.interpreter.python),
            "--prerelease",
            "allow" if pre else "disallow",
            *options,
        ]
        text = self.uv(arguments, stdin="\n".join(requirements) + "\n")
        return dict(map(_release, tomllib.loads(text)["packages"]))

    def _file(self, package: str) -> Path:
        python = ".".join(self.interpreter.version.split(".")[:2])
        return self.layout.releases / f"{self.uv.indexes.digest[:24]}-{python}" / f"{package}.json"

    def _read(self, package: str) -> _Known | None:
        try:
            told = json.loads(self._file(package).read_text(encoding="utf-8"))
            return _Known(
                asked=utc(told["asked"]),
                whole=None if told["whole"] is None else utc(told["whole"]),
                releases=newest_first(
                    Release(version=str(Version(version)), uploaded=None if uploaded is None else utc(uploaded))
                    for version, uploaded in told["releases"]
                ),
            )
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None  # it is a memory, not a truth: without it the indexes are asked again

    def _write(self, package: str, known: _Known) -> None:
        releases = [(it.version, None if it.uploaded is None else it.uploaded.isoformat()) for it in known.releases]
        told = {
            "asked": known.asked.isoformat(),
            "whole": None if known.whole is None else known.whole.isoformat(),
            "releases": releases,
        }
        write_atomically(self._file(package), json.dumps(told, indent=1))


def _release(package: dict[str, Any]) -> tuple[str, Release]:
    """Read one package of a ``pylock.toml`` (PEP 751), whose files have their upload times as TOML has times."""
    files = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else ())]
    times = [file["upload-time"] for file in files if isinstance(file.get("upload-time"), datetime)]
    uploaded = min((utc(time.isoformat()) for time in times), default=None)
    name: str = canonicalize_name(package["name"])
    return name, Release(version=str(Version(package["version"])), uploaded=uploaded)


def _supported(package: str) -> str:
    return f"{package}>={OLDEST.get(package, '0')}"


def _stale(error: EnvironmentFailedError, known: _Known, now: datetime) -> str:
    first = error.message.splitlines()[0]
    return f"the indexes cannot be asked ({first}); taken from what they said {age(known.asked, now)} ago"


def _nothing_offered(package: str, error: Unresolvable) -> VersionNotFoundError:
    return VersionNotFoundError(
        f"No configured package index offers a release of {package} that fits. uv says: {error.explanation}",
        remedy="Check the index settings (`harness doctor` lists them).",
    )
