"""``expectations.toml``: what is known to fail, in which cells, why and since when.

A known failure is declared narrowly: versions, cells, stage, outcome, words of the reason. So whatever else goes wrong
in the same cell still stands out. A declaration that is about no cell at all is an error: it would be believed to watch
over something. So is a glob among its ``cells`` that matches no cell, or excludes none. Exempt is what only a run finds
(``found``). What results mean in the light of declarations is decided in ``harness.matrix.verdict``.
"""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.contract.cell_fields import Device
from harness.contract.stages import TABLE, StageName
from harness.errors import ConfigurationError, UnknownNameError
from harness.matrix.catalogue import Catalogue
from harness.matrix.cell import MAIN_PACKAGES, Cell, Stack
from harness.matrix.conditions import ConditionText, parse_condition
from harness.matrix.config import MatrixConfig
from harness.matrix.plan import all_cells
from harness.matrix.reading import read_model
from harness.result import StageResult

DeclaredOutcome = Literal[
    "crash", "oom", "timeout", "error", "noop", "fail", "blind", "unresolvable", "unsupported", "skipped"
]
"""Whatever is no pass."""

EXCLUDES = "!"
"""What a glob that excludes cells begins with; no id has that character."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Expectation(_Table):
    """One declared failure."""

    when: ConditionText | None = None
    """Condition on the versions of a cell's stack; absent: all of them."""
    cells: tuple[str, ...] = ()
    """Globs over cell ids, any of which must match; absent: all cells. One that begins with ``!`` excludes: it must
    not match."""
    stage: StageName
    """The stage that fails."""
    outcome: DeclaredOutcome
    """How it fails. ``unsupported``: the library says that it has no such family or feature; it is no failure then."""
    match: str | None = Field(default=None, min_length=1)
    """Words that the stage's reason must contain; absent: any reason."""
    checks: tuple[str, ...] = ()
    """Globs over the names of the stage's checks that fail with it; absent: any of that stage's."""
    found: bool = False
    """True when it is about stacks or families that no profile names but a run finds: those of ``[[selections]]``, and
    families by introspection. What a run will find is not known before. So nothing says that such an entry, or a glob
    in it, is about no cell."""
    flaky: bool = False
    """True when the stage fails only sometimes, so that passing is no surprise either."""
    reason: str = Field(min_length=1)
    """Why it fails, in a sentence for the reader of the report."""
    since: str = Field(min_length=1)
    """The release or date since when."""
    link: str | None = Field(default=None, pattern=r"^https://")
    """Where it is discussed."""

    @model_validator(mode="after")
    def _narrow(self) -> Self:
        if self.when is None and not self._included:
            raise ValueError("say when it applies: give 'when', 'cells' that are not all exclusions, or both")
        if self.outcome == "unsupported" and not TABLE[self.stage].may_lack:
            raise ValueError(f"a stack cannot lack in {self.stage} what was there before: that is an error")
        return self

    @property
    def _included(self) -> tuple[str, ...]:
        return _sorted_out(self.cells)[0]

    @property
    def _excluded(self) -> tuple[str, ...]:
        return _sorted_out(self.cells)[1]

    def applies(self, cell: Cell) -> bool:
        """Say whether this is about ``cell``, by its versions and its id."""
        return self.holds(cell.stack) and self._names(cell.id)

    def holds(self, stack: Stack) -> bool:
        """Say whether the condition on versions holds for a stack."""
        return self.when is None or parse_condition(self.when).holds(stack)

    def _names(self, cell_id: str) -> bool:
        """Say whether the globs mean a cell of that id."""
        return self._reaches(cell_id) and not _any_matches(self._excluded, cell_id)

    def about(self, ids: Iterable[str]) -> bool:
        """Say whether this is about any of some cells, for whose versions it holds."""
        return any(map(self._names, ids))

    def idle_globs(self, ids: Iterable[str]) -> list[str]:
        """Return the globs that match none of some cells, and the exclusions that exclude none; it holds for them."""
        reached = list(filter(self._reaches, ids))
        return [glob for glob in self.cells if not fnmatch.filter(reached, glob.removeprefix(EXCLUDES))]

    def _reaches(self, cell_id: str) -> bool:
        """Say whether this would be about a cell of that id if nothing were excluded."""
        return not self._included or _any_matches(self._included, cell_id)

    def describes(self, stage: StageName, result: StageResult) -> bool:
        """Say whether a stage failed exactly as declared."""
        return (stage, result.result) == (self.stage, self.outcome) and (
            self.match is None or self.match in (result.reason or "")
        )

    def covers(self, check: str) -> bool:
        """Say whether a failed check of the stage belongs to the declared failure."""
        return not self.checks or any(fnmatch.fnmatchcase(check, glob) for glob in self.checks)


@cache  # asked of every declaration for each of thousands of cells
def _sorted_out(globs: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the globs that include and those that exclude, these without their mark."""
    included = tuple(glob for glob in globs if not glob.startswith(EXCLUDES))
    return included, tuple(glob.removeprefix(EXCLUDES) for glob in globs if glob.startswith(EXCLUDES))


def _any_matches(globs: Sequence[str], cell_id: str) -> bool:
    return any(fnmatch.fnmatchcase(cell_id, glob) for glob in globs)


class Expectations(_Table):
    """What is known to fail."""

    schema_version: Literal[1] = Field(alias="schema")
    """Version of this format."""
    expectation: tuple[Expectation, ...] = ()
    """The declared failures."""


def load_expectations(path: Path | None) -> tuple[Expectation, ...]:
    """Read and validate an ``expectations.toml``; None means that nothing is expected to fail.

    Raises:
        ConfigurationError: the file cannot be read or says something that cannot be.
        UnknownNameError: its one problem is a name or key that nothing has.
    """
    return () if path is None else read_model(path, Expectations).expectation


def check_expectations(
    expectations: Sequence[Expectation], config: MatrixConfig, catalogue: Catalogue, *, label: str = "expectations.toml"
) -> None:
    """Check that each expectation is about packages that are pinned and about some cell of some profile.

    Where a profile's cells run, whoever runs it says: a cell on either device will do. One about what only a run finds
    (``found``) is held to its packages alone.

    Args:
        expectations: what was declared.
        config: the profiles.
        catalogue: the names that exist.
        label: the file's name, for messages.

    Raises:
        UnknownNameError: a condition names a package that no stack pins, so that it can never hold.
        ConfigurationError: an expectation, or one of its globs, is about no cell of any profile.
    """
    ids: dict[str, list[str]] = defaultdict(list)
    for cell in all_cells(config, catalogue):
        # A plan differs between devices in nothing else, and takes longer to make than to copy.
        ids[cell.stack.id] += [cell.model_copy(update={"device": device}).id for device in get_args(Device)]
    packages = {*MAIN_PACKAGES, *(name for stack in config.declared for name in stack.pins)}
    for index, expectation in enumerate(expectations):
        where = f"{label}: expectation.{index}"
        for package in parse_condition(expectation.when).specifiers if expectation.when else ():
            if package not in packages:
                raise UnknownNameError("package", package, packages, where=f"{where}.when")
        if expectation.found:
            continue
        # Thousands of cells are on a handful of stacks, and every command asks: so versions are asked once for each.
        concerned = [cell_id for stack in config.declared if expectation.holds(stack) for cell_id in ids[stack.id]]
        if not expectation.about(concerned):
            raise ConfigurationError(
                f"{where}: no cell of any profile has when = {expectation.when!r} and cells = "
                f"{list(expectation.cells)}.",
                remedy="Correct it, or remove it together with the stack it was about. If only a run finds what it is "
                "about, by [[selections]] or introspection, say found = true.",
            )
        for glob in expectation.idle_globs(concerned):
            what = "excludes none of the cells that it could" if glob.startswith(EXCLUDES) else "matches no cell"
            raise ConfigurationError(
                f"{where}.cells: {glob!r} {what}, of any profile.",
                remedy="Correct it, or remove it. For cells that only a run finds, make an entry with found = true.",
            )
