"""What ends a merge: one class per condition, each with what happened, what to do about it, and an exit code.

The merge engine stands alone (it is copied into environments that hold nothing else of this project), so it has its own
errors; the command line maps them onto its own. Three families: ``UsageError`` (exit 2, the options cannot be),
``InputRefusedError`` (exit 5, a checkpoint or an adapter that is corrupt, unsafe, ambiguous or not supported) and
``IncompleteMergeError`` (exit 1, the merge did not finish or does not add up). None of them leaves an output directory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

LONGEST_MESSAGE = 4000
"""Characters of a message.

Names and values out of a hostile file can be megabytes long, and stand in what is said of them.
"""
SHOWN = 8
"""How many names a message lists before it says how many more there are."""


def listed(names: Iterable[str]) -> str:
    """Return the names joined for a message: sorted, the first few, then how many more."""
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return ``1 tensor``, ``2 tensors``; ``plural`` is what several are, where it is not ``noun`` with an s."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


class MergeError(Exception):
    """A condition that ends the merge.

    Attributes:
        message: what happened, with the names and shapes that show it.
        remedy: what the user can do, or None when the message already says it.
        exit_code: what a command should exit with.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, remedy: str | None = None) -> None:
        if len(message) > LONGEST_MESSAGE:
            half = LONGEST_MESSAGE // 2
            message = f"{message[:half]} … {message[-half + 3 :]}"
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def to_json(self) -> dict[str, object]:
        """Return the error as JSON-ready values: ``class``, ``message``, ``remedy``, ``exit_code``."""
        return {
            "class": type(self).__name__,
            "message": self.message,
            "remedy": self.remedy,
            "exit_code": self.exit_code,
        }


class IncompleteMergeError(MergeError):
    """The merge could not be finished (disk full, write failed) or its own count does not add up.

    Nothing is published.
    """


class UsageError(MergeError):
    """The options of the merge cannot be."""

    exit_code = 2


class InputNotFoundError(UsageError):
    """The base or adapter directory does not exist."""


class OutputExistsError(UsageError):
    """The output directory exists and overwriting was not asked for."""


class UnsafeOutputError(UsageError):
    """The output directory is, holds or lies inside an input, or overwriting it would destroy something else."""


class OverwriteUnsupportedError(UsageError):
    """The file system cannot exchange two directories in one step, so overwriting could leave neither."""


class ThreadLimitError(UsageError):
    """The system lets this process start no further thread."""


class InputRefusedError(MergeError):
    """A checkpoint or an adapter that is corrupt, unsafe, ambiguous or not supported."""

    exit_code = 5


class UnreadableInputError(InputRefusedError):
    """The operating system could not read an input file."""


class CorruptFileError(InputRefusedError):
    """A file is not what its format demands: header, JSON, offsets, size."""


class UnsafePathError(InputRefusedError):
    """A file name or link of the checkpoint or adapter leaves its directory, or is not a plain file."""


class UnsafeFormatError(InputRefusedError):
    """Weights are stored as pickles (.bin, .pt, .pth), which run code when they are read."""


class UnsafePatternError(InputRefusedError):
    """A regular expression of the adapter's configuration is malformed or could take unbounded time."""


class InconsistentCheckpointError(InputRefusedError):
    """Index, shards and configuration of the base disagree."""


class UnsupportedBaseError(InputRefusedError):
    """The base stores a tensor that must change in a format that cannot be merged into, such as a quantised one."""


class UnsupportedAdapterError(InputRefusedError):
    """The adapter uses a feature that this engine does not merge."""


class MalformedAdapterError(InputRefusedError):
    """The adapter's tensors or configuration do not make sense by themselves."""


class NonFiniteError(InputRefusedError):
    """NaN or infinity in the adapter, or in a tensor that changes."""


class AdapterMismatchError(InputRefusedError):
    """The adapter was made for another base: its modules or shapes are not the base's."""


class UncoveredTargetsError(InputRefusedError):
    """The adapter's configuration targets tensors that no lora pair reaches."""


class AmbiguousLayoutError(InputRefusedError):
    """Neither shapes nor provenance say which io layout the adapter has; a flag can."""


class LayoutContradictionError(InputRefusedError):
    """Shapes, provenance and flags say different things about the adapter's layout."""


class InputChangedError(InputRefusedError):
    """An input file is no longer the one that was planned with."""
