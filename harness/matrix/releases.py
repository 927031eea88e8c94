"""What an index offers of a package: its releases, when each was uploaded, and how old that knowledge is. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from packaging.version import Version

from harness.contract.supported import OLDEST


@dataclass(frozen=True, kw_only=True)
class Release:
    """One release of a package that fits the Python it was asked for.

    Attributes:
        version: as PEP 440 writes it.
        uploaded: when its first file was uploaded, in UTC (PEP 700); None where the index does not say.
        yanked: whether it was withdrawn (PEP 592).
    """

    version: str
    uploaded: datetime | None = None
    yanked: bool = False

    @property
    def number(self) -> Version:
        """The version as one that can be ordered."""
        return Version(self.version)


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What is known of a package's releases.

    Attributes:
        package: its name.
        releases: the newest first.
        asked: when the indexes were asked, in UTC.
        stale: why an earlier answer stands in for today's; None where it is today's.
        new: versions that the answer before this one did not have.
    """

    package: str
    releases: tuple[Release, ...]
    asked: datetime
    stale: str | None = None
    new: tuple[str, ...] = ()


def newest_first(releases: Iterable[Release]) -> tuple[Release, ...]:
    """Return releases by version, the newest first, each once (``5.5`` and ``5.5.0`` are one)."""
    by_number = {release.number: release for release in releases}
    return tuple(by_number[number] for number in sorted(by_number, reverse=True))


def supported(package: str, version: Version) -> bool:
    """Say whether the harness can work with a release: pre-releases of the oldest supported one are too old."""
    return package not in OLDEST or version >= Version(OLDEST[package])


def age(then: datetime, now: datetime) -> str:
    """Return how long ago something was, in the largest unit that fits: ``3 days``, ``2 hours``, ``5 minutes``."""
    return age_text((now - then).total_seconds())


def age_text(seconds: float) -> str:
    """Return a time span in the largest unit that fits, see :func:`age`."""
    seconds = max(0, int(seconds))
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if count := seconds // length:
            return f"{count} {name}{'' if count == 1 else 's'}"
    return "less than a minute"


def utc(text: str) -> datetime:
    """Parse an ISO 8601 time; one without a zone is UTC.

    Raises:
        ValueError: it is none.
    """
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
