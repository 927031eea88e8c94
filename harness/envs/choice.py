"""What the configured indexes and uv's resolver say to a choice of versions: the effects behind completing a stack."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from harness.envs.interpreter import find_interpreter
from harness.envs.layout import CacheLayout, cache_dir
from harness.envs.lock import compile_requirements, locked_versions
from harness.envs.release_list import ReleaseList
from harness.envs.sources import build_source
from harness.envs.uv_command import Log, Unresolvable, find_uv
from harness.envs.versions import empty_ranges, missing_pins, raise_for_missing
from harness.errors import ConfigurationError
from harness.matrix.releases import Offer
from harness.matrix.sources import Source, SourceSelector


@dataclass(frozen=True, kw_only=True)
class IndexChooser:
    """Answers what ``harness.matrix.versions.Chooser`` asks, from the configured indexes.

    Attributes:
        releases: what the indexes offer.
        notes: what should be said of the answers, as that an index was out of reach.
    """

    releases: ReleaseList
    notes: list[str] = field(default_factory=list)

    def newest(self, package: str, *, pre: bool) -> str:
        """Return the newest release of a package."""
        return self._noted(self.releases.newest(package, pre=pre))

    def oldest(self, package: str, *, pre: bool) -> str:
        """Return the oldest release of a package that the harness supports."""
        return self._noted(self.releases.oldest(package, pre=pre))

    def offer(self, package: str) -> Offer:
        """Return all releases of a package; that they were asked for earlier is noted."""
        offer = self.releases.offer(package)
        if offer.stale is not None:
            self.notes.append(f"{package}: {offer.stale}")
        return offer

    def choose(self, requirements: Sequence[str], *, pre: Collection[str]) -> Mapping[str, str]:
        """Return the versions that the resolver takes for requirements and all that they need.

        Pre-releases count for the packages in ``pre``, and where one is pinned.

        Raises:
            VersionNotFoundError: no index offers one of them, whatever goes with it; its neighbours are named.
            ConfigurationError: no versions meet them all; the message is uv's explanation.
        """
        uv, interpreter = self.releases.uv, self.releases.interpreter
        try:
            text = compile_requirements(uv, requirements, interpreter.python, pre=pre)
        except Unresolvable as error:
            raise_for_missing(missing_pins(uv, self.releases.layout, requirements, interpreter))
            raise_for_missing(empty_ranges(uv, requirements, interpreter, pre=pre))
            raise ConfigurationError(
                f"No versions go together with {', '.join(requirements)}. uv says: {error.explanation}",
                remedy="Give a range instead of a version (as --peft '>=0.19'), or leave out one of the three; "
                "--resolution fresh leaves out the pins of matrix.toml.",
            ) from error
        return locked_versions(text)

    def uploaded(self, versions: Mapping[str, str]) -> Mapping[str, datetime | None]:
        """Return when each version was uploaded; None where the index does not say."""
        return self.releases.uploaded(dict(versions))

    def build(self, package: str, selector: SourceSelector) -> tuple[str, Source]:
        """Return the version of what no index has, and what it is built from."""
        mine = self.releases
        return build_source(mine.uv, mine.layout, mine.interpreter, package, selector)

    def today(self) -> date:
        """Return the day (UTC)."""
        return self.releases.now().astimezone(UTC).date()

    def _noted(self, answer: tuple[str, str | None]) -> str:
        version, note = answer
        if note is not None:
            self.notes.append(note)
        return version


def open_chooser(*, python_version: str | None = None, log: Log | None = None) -> IndexChooser:
    """Return a chooser for the configured indexes and a Python.

    Args:
        python_version: ``major.minor``; None: the running one.
        log: receives every external command before it runs.

    Raises:
        EnvironmentFailedError: there is no uv, or no such Python.
    """
    layout = CacheLayout(cache_dir())
    uv = find_uv(layout.working_folder, log)
    return IndexChooser(releases=ReleaseList(uv=uv, layout=layout, interpreter=find_interpreter(uv, python_version)))
