"""Fatal conditions, one class each.

Each says what happened and what to do about it, and has the exit code of the command.

Nothing here is raised for what happens *inside* a cell: there everything is an outcome (see ``harness.result``).
Exit codes are part of the command line's contract: 2 usage or configuration, 3 nothing selected, 4 environment could
not be made, 5 input refused, 6 the command after a merge failed, 130 interrupted. Code 1 (a check failed) is a result,
not an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rapidfuzz import fuzz, process
from rapidfuzz.distance import DamerauLevenshtein


class HarnessError(Exception):
    """A condition that ends the command.

    Attributes:
        message: what happened and, where it is known, why it usually does.
        remedy: what the user can do: what was given, else what can always be done about this class of error.
        exit_code: what the command exits with.
    """

    exit_code = 2
    usual_remedy: ClassVar[str] = "The installation is not complete: install moe-lora-harness again."

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy or self.usual_remedy


class ConfigurationError(HarnessError):
    """``matrix.toml``, ``expectations.toml`` or a command-line option says something that cannot be."""

    usual_remedy = "Correct what the message names. `--help` says what a command takes, docs/reference what files hold."


class UnknownNameError(ConfigurationError):
    """A name that nothing has: a family, recipe, geometry, profile, stack or key."""

    def __init__(
        self,
        what: str,
        name: str,
        known: Iterable[str],
        *,
        where: str | None = None,
        why: str | None = None,
        remedy: str | None = None,
    ) -> None:
        """Build the message, with the nearest known name as a suggestion.

        Args:
            what: what kind of thing the name should be, as ``"model"``.
            name: the name that was given.
            known: every name that would have been right.
            where: the place that named it, as ``"matrix.toml: profiles.default"``.
            why: what makes it unknown, where that is not the list alone.
            remedy: what the user can do; None: choose one of the known names, all of which are listed.
        """
        choices = sorted(known)
        near = nearest(name, choices)
        place = f"{where}: " if where else ""
        suggestion = f" Did you mean {near!r}?" if near else ""
        reason = f": {why}" if why else ""
        super().__init__(
            f"{place}unknown {what} {name!r}{reason}.{suggestion}", remedy=remedy or f"Known: {', '.join(choices)}."
        )
        self.name = name
        self.suggestion = near


class VersionNotFoundError(ConfigurationError):
    """A pinned version that no configured package index offers."""


class NothingSelectedError(HarnessError):
    """The selection matches no cell."""

    exit_code = 3
    usual_remedy = "`harness plan` shows the cells of a profile; `--select` takes globs over their ids."


class EnvironmentFailedError(HarnessError):
    """An environment could not be made, for a reason that is not the stack's.

    Examples are an index out of reach, a full disk, no torch.
    """

    exit_code = 4
    usual_remedy = "`harness doctor` says what this machine lacks; then give the same command again."


class InputRefusedError(HarnessError):
    """A checkpoint, adapter or result file that is corrupt, unsafe or ambiguous."""

    exit_code = 5
    usual_remedy = "Give another file or directory, or make this one again."


class HookFailedError(HarnessError):
    """The command of ``harness merge --then`` failed; the merge was published and stays."""

    exit_code = 6
    usual_remedy = "Run the command by hand: the merge is where --out says."


class InterruptedByUserError(HarnessError):
    """Ctrl-C: finished cells are kept, children are gone, the partial report is written."""

    exit_code = 130
    usual_remedy = "Give the same command again."


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the known name most like ``name``, or None when none is close enough to be what was meant."""
    known = list(choices)
    found = mistyped(name, known)
    if found is None:  # another way to write it, as ``bfloat16``
        alike = process.extractOne(name, known, scorer=fuzz.WRatio, score_cutoff=60)
        found = None if alike is None else str(alike[0])
    return found


def mistyped(name: str, choices: Iterable[str]) -> str | None:
    """Return the known name that ``name`` is a typing error of, as ``tlr`` of trl; None without one.

    The first letter is seldom wrong, so only names that begin alike are looked at.
    """
    alike = [choice for choice in choices if choice[:1] == name[:1]]
    found = process.extractOne(name, alike, scorer=DamerauLevenshtein.normalized_similarity, score_cutoff=0.6)
    return None if found is None else str(found[0])
