"""What an audit found: one row per tensor of the base, what is wrong beside the tensors, and the sentence that sums it
up.

Everything a person or a program wants to know is counted from the rows, so that no total can disagree with them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from harness.merge.adapter.layout import Decision
from harness.merge.auditing.sentence import summarise
from harness.merge.auditing.tensor_verdict import TensorVerdict, Verdict, count_targeted, count_untargeted
from harness.merge.base.names import Kind


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """The outcome of an audit.

    Attributes:
        rows: one per tensor of the base, in the order in which they lie in its shards.
        missing_files: what the merged directory lacks and a user of it needs, in words (``generation_config.json``,
            ``the chat template``).
        index_problems: where the merged checkpoint's index and shards disagree.
        config_problems: where its config.json and its tensors disagree.
        config_changes: where its config.json describes another model than the base's.
        unexpected: tensors of the merged checkpoint that the base has under no name.
        equivalents: key renames that mean the same, with counts.
        dtype_changes: ``base -> merged`` dtypes with counts.
        other_files: further files of the base that the merged directory lacks; not a fault.
        io_layout: the adapter's, as for a merge; None when it covers nothing fused.
        b_packing: likewise.
        notes: of the plan, and on settings of config.json that differ and do not change the model.
        bytes_read: of tensors, in base and merged checkpoint together.
    """

    rows: tuple[TensorVerdict, ...]
    missing_files: tuple[str, ...] = ()
    index_problems: tuple[str, ...] = ()
    config_problems: tuple[str, ...] = ()
    config_changes: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    equivalents: tuple[str, ...] = ()
    dtype_changes: tuple[str, ...] = ()
    other_files: tuple[str, ...] = ()
    io_layout: Decision | None = None
    b_packing: Decision | None = None
    notes: tuple[str, ...] = ()
    bytes_read: int = 0

    @property
    def by_kind(self) -> dict[Kind, Counter[Verdict]]:
        """Targeted tensors by verdict, for each kind that has any, in a fixed order of kinds."""
        return count_targeted(self.rows)

    @property
    def untargeted(self) -> Counter[Verdict]:
        """Tensors that no lora pair covers, by verdict."""
        return count_untargeted(self.rows)

    @property
    def faults(self) -> tuple[TensorVerdict, ...]:
        """The rows that are not what they should be."""
        return tuple(row for row in self.rows if not row.ok)

    @property
    def ok(self) -> bool:
        """Whether every tensor is what it should be, no file is missing, index and config.json agree with the tensors,
        and it is the base's model.
        """
        about = (self.missing_files, self.index_problems, self.config_problems, self.config_changes)
        return not (self.faults or any(about))

    @property
    def exit_code(self) -> int:
        """0 when ``ok``, else 1."""
        return 0 if self.ok else 1

    @property
    def sentence(self) -> str:
        """The summary: counts by kind, then what they mean."""
        return summarise(
            self.rows,
            missing_files=self.missing_files,
            index_problems=self.index_problems,
            config_problems=self.config_problems,
            config_changes=self.config_changes,
        )

    def to_json(self) -> dict[str, object]:
        """Return the report with every row as JSON-ready values."""
        return {
            "ok": self.ok,
            "sentence": self.sentence,
            "by_kind": {kind: dict(counts) for kind, counts in self.by_kind.items()},
            "untargeted": dict(self.untargeted),
            "missing_files": list(self.missing_files),
            "index_problems": list(self.index_problems),
            "config_problems": list(self.config_problems),
            "config_changes": list(self.config_changes),
            "unexpected_tensors": list(self.unexpected),
            "equivalents": list(self.equivalents),
            "dtype_changes": list(self.dtype_changes),
            "other_files": list(self.other_files),
            "io_layout": self.io_layout.to_json() if self.io_layout else None,
            "b_packing": self.b_packing.to_json() if self.b_packing else None,
            "notes": list(self.notes),
            "bytes_read": self.bytes_read,
            "rows": [row.to_json() for row in self.rows],
        }
