"""``[[selections]]`` of ``matrix.toml``: stacks that are not written down but found, as the newest of each. Pure.

A selection names versions by selectors, combines them by a strategy, and leaves out what its conditions exclude. Blocks
of profiles name it. What it comes to depends on what the indexes offer that day, so it is expanded when a profile that
uses it is planned, and never when the file is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Protocol, Self

from packaging.version import Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from harness.contract.cell_fields import NAME_PATTERN
from harness.errors import ConfigurationError
from harness.matrix.cell import MAIN_PACKAGES, PINNED, PYTHON_PATTERN, PinName, VersionText
from harness.matrix.combine import Strategy
from harness.matrix.conditions import ConditionText
from harness.matrix.releases import Offer, Release, age, newest_first
from harness.matrix.selectors import Exact, SelectorText, parse_selector, select
from harness.matrix.sources import Source, SourceSelector
from harness.matrix.versions import parse_resolution

NEW_FOR = timedelta(days=7)
"""A release that was uploaded so lately is new."""


def _checked_resolution(text: str) -> str:
    try:
        return parse_resolution(text)
    except ConfigurationError as error:
        raise ValueError(error.message.removeprefix("--resolution ").rstrip(".")) from None


Selectors = SelectorText | Annotated[tuple[SelectorText, ...], Field(min_length=1)]


class VersionSelection(BaseModel):
    """Stacks made of selected versions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=f"^{NAME_PATTERN}$")
    """What blocks of profiles call it."""
    transformers: Selectors | None = None
    """Selector of versions of transformers, or several; absent: what the resolver takes beside the others."""
    peft: Selectors | None = None
    """Selector of versions of peft, or several; absent: what the resolver takes beside the others."""
    trl: Selectors | None = None
    """Selector of versions of trl, or several; absent: what the resolver takes beside the others."""
    strategy: Strategy = "full"
    """``full``: every combination. ``extremes``: all newest, all oldest, each one old among the newest. ``pairwise``:
    any two versions together at least once."""
    include: tuple[ConditionText, ...] = ()
    """Conditions on versions, any of which must hold; absent: all stacks."""
    exclude: tuple[ConditionText, ...] = ()
    """Conditions on versions, none of which may hold."""
    pre: bool = False
    """Whether pre-releases count."""
    resolution: Annotated[str, AfterValidator(_checked_resolution)] = PINNED
    """What is installed beside the three: ``pinned`` (``[pins]``), ``fresh`` (what an installation gives today) or
    ``era-N`` (nothing newer than N days after the newest of the three)."""
    pins: dict[PinName, VersionText] = Field(default_factory=dict)
    """Exact versions of other packages, where these stacks want others than ``[pins]`` and ``[[overrides]]`` say. They
    show in ids, and hold for ``fresh`` and ``era-N`` as well."""
    python: str | None = Field(default=None, pattern=PYTHON_PATTERN)
    """``major.minor`` version of the environments' interpreter; absent: the one that runs the harness."""

    @model_validator(mode="after")
    def _selects(self) -> Self:
        if not any(self.selectors_of(name) for name in MAIN_PACKAGES):
            raise ValueError(f"{self.name}: it selects no version of transformers, peft or trl")
        return self

    def selectors_of(self, package: str) -> tuple[str, ...]:
        """Return the selectors of one of the three packages, none when it is left to the resolver."""
        given = getattr(self, package)
        return () if given is None else (given,) if isinstance(given, str) else tuple(given)


class Index(Protocol):
    """What has to be asked of indexes and repositories."""

    def offer(self, package: str) -> Offer:
        """Return what is known of a package's releases."""
        ...

    def build(self, package: str, selector: SourceSelector) -> tuple[str, Source]:
        """Return the version of what no index has, and what it is built from."""
        ...


@dataclass(frozen=True, kw_only=True)
class SelectedVersions:
    """What the selectors of one package come to.

    Attributes:
        versions: as ids show them, the newest first.
        by: the selector that each comes from.
        sources: what those that no index has are built from.
        new: those that are new, each with the words that say since when.
    """

    versions: tuple[str, ...]
    by: Mapping[str, str]
    sources: Mapping[str, Source]
    new: Mapping[str, str]


def selected_versions(selection: VersionSelection, package: str, index: Index, *, now: datetime) -> SelectedVersions:
    """Return the versions of a package that a selection names.

    Raises:
        ConfigurationError: one of its selectors means none.
    """
    by: dict[str, str] = {}
    sources: dict[str, Source] = {}
    new: dict[str, str] = {}
    for text in selection.selectors_of(package):
        selector = parse_selector(text)
        if isinstance(selector, SourceSelector):
            version, source = index.build(package, selector)
            sources[version + source.mark] = source
            found: tuple[str, ...] = (version + source.mark,)
        elif isinstance(selector, Exact):
            found = (selector.version,)
        else:
            offer = index.offer(package)
            found = select(selector, offer.releases, package=package, pre=selection.pre).versions
            new |= _new_among(found, offer, now)
        # The selector that came first keeps its version, and the spelling of it: 5.23 and 5.23.0 are one (PEP 440).
        had = {Version(version) for version in by if version not in sources}
        by |= {version: text for version in found if version in sources or Version(version) not in had}
    released = newest_first(Release(version=version) for version in by if version not in sources)
    versions = (*sources, *(release.version for release in released))
    return SelectedVersions(versions=versions, by=by, sources=sources, new=new)


def _new_among(versions: tuple[str, ...], offer: Offer, now: datetime) -> dict[str, str]:
    """Return which of some versions are new, each with the words that say since when."""
    uploads = {release.version: release.uploaded for release in offer.releases}
    found = {}
    for version in versions:
        uploaded = uploads[version]
        if uploaded is not None and now - uploaded < NEW_FOR:
            found[version] = f"{offer.package} {version} is new: uploaded {age(uploaded, now)} ago"
        elif version in offer.new:
            found[version] = f"{offer.package} {version} is new: it was not there when the indexes were last asked"
    return found
