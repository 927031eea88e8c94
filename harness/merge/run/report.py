"""What a finished merge says about itself, counted per on-disk tensor while it was written.

``applied`` is the engine's own claim: the written values differ from the base's. Two kinds of tensor rightly equal the
base and are counted apart: ``zero_delta`` (lora_B still zero, as for an expert that never got a token) and
``below_rounding`` (a delta that vanishes in the dtype).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.merge.adapter.layout import Decision
from harness.merge.base.names import KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Tensors by what became of them; attempted = applied + zero_delta + below_rounding."""

    attempted: int = 0
    applied: int = 0
    zero_delta: int = 0
    below_rounding: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            attempted=self.attempted + other.attempted,
            applied=self.applied + other.applied,
            zero_delta=self.zero_delta + other.zero_delta,
            below_rounding=self.below_rounding + other.below_rounding,
        )

    def to_json(self) -> dict[str, int]:
        """Return the four counts by name."""
        return {
            "attempted": self.attempted,
            "applied": self.applied,
            "zero_delta": self.zero_delta,
            "below_rounding": self.below_rounding,
        }


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """What a resumed merge found of an unfinished one.

    Attributes:
        shards: how many are to be written in all.
        kept: how many were verified by hash and left as they were.
        rejected: how many were finished according to the ledger, but not what it says, and so written again.
        foreign: how many directories were kept for other inputs or options, and removed.
    """

    shards: int
    kept: int
    rejected: int
    foreign: int

    def to_json(self) -> dict[str, int]:
        """Return the four counts by name."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """The outcome of a published merge.

    Attributes:
        by_kind: an entry for each kind that the adapter covers.
        io_layout: how the adapter was read, and what decided it.
        b_packing: likewise.
        notes: what is worth knowing and no fault.
        files_left_out: files of the base that were not copied.
        bytes_written: bytes of the shards.
        bytes_decoded: bytes of the base that were read as numbers; the rest was copied unseen.
        resumed: None where nothing unfinished was there, or was looked for.
    """

    by_kind: Mapping[str, Counts]
    io_layout: Decision | None
    b_packing: Decision | None
    notes: tuple[str, ...]
    files_left_out: tuple[str, ...]
    bytes_written: int
    bytes_decoded: int
    resumed: Resumed | None

    @property
    def total(self) -> Counts:
        """The counts over all kinds."""
        return sum(self.by_kind.values(), Counts())

    @property
    def attempted(self) -> int:
        """On-disk tensors that a lora pair covers."""
        return self.total.attempted

    @property
    def applied(self) -> int:
        """Those whose written values differ from the base's."""
        return self.total.applied

    @property
    def zero_delta(self) -> int:
        """Those whose delta is zero in every element."""
        return self.total.zero_delta

    @property
    def below_rounding(self) -> int:
        """Those with a delta that changes no element once rounded."""
        return self.total.below_rounding

    def to_json(self) -> dict[str, object]:
        """Return the report as JSON-ready values (a dictionary, not text)."""
        return {
            **self.total.to_json(),
            "by_kind": {kind: self.by_kind[kind].to_json() for kind in KINDS if kind in self.by_kind},
            "io_layout": self.io_layout.to_json() if self.io_layout else None,
            "b_packing": self.b_packing.to_json() if self.b_packing else None,
            "notes": list(self.notes),
            "files_left_out": list(self.files_left_out),
            "bytes_written": self.bytes_written,
            "bytes_decoded": self.bytes_decoded,
            "resumed": self.resumed.to_json() if self.resumed else None,
        }


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """A published part: its directory, its number of so many, the shards in it, and bytes written."""

    path: Path
    part: int
    parts: int
    shards: tuple[str, ...]
    bytes_written: int
    resumed: Resumed | None

    def to_json(self) -> dict[str, object]:
        """Return JSON-ready values."""
        return {
            "path": str(self.path),
            "part": self.part,
            "parts": self.parts,
            "shards": list(self.shards),
            "bytes_written": self.bytes_written,
            "resumed": self.resumed.to_json() if self.resumed else None,
        }
