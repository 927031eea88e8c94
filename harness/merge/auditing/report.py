"""What an audit found: one row per tensor of the base, what is wrong beside the tensors, and the sentence that sums it up.

Everything a person or a program wants to know is counted from the rows, so that no total can disagree with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from harness.merge.layout import Decision
from harness.merge.names import KINDS, Kind

Verdict = Literal[
    "applied", "indistinguishable", "untouched", "partial", "scrambled", "wrong", "missing", "same", "changed"
]
TARGETED: tuple[Verdict, ...] = (
    "applied", "indistinguishable", "untouched", "partial", "scrambled", "wrong", "missing",
)  # fmt: skip
"""What a targeted tensor can be; from ``untouched`` on each is a fault, the later the worse."""
UNTARGETED: tuple[Verdict, ...] = ("same", "changed")
FAULTS = frozenset({"untouched", "partial", "scrambled", "wrong", "missing", "changed"})

PLURALS: Mapping[Kind, str] = {
    "attention": "attention",
    "expert": "experts",
    "shared_expert": "shared experts",
    "router": "routers",
    "dense": "dense",
    "other": "other",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorVerdict:
    """What became of one tensor of the base.

    Attributes:
        key: its name in the base.
        kind: what it is part of.
        layer: its decoder layer, or None outside the decoder.
        expert: which expert's it is, or None for a tensor that holds all of them, or none.
        verdict: one of ``TARGETED`` or, for a tensor that no lora pair covers, of ``UNTARGETED``. A fused tensor has the
            worst of its experts' verdicts; ``slices`` counts them.
        detail: how exactly it was applied (``bit-exact``, ``1-ulp``, ``bf16-double-rounded``, ``low-precision``), why it may equal
            the base (``zero-delta``, ``below-rounding``), or what it holds instead, in words.
        scale: the fitted factor on the adapter's own scaling, for ``partial`` (and a scrambled delta that is also scaled).
        exact_share: share of its elements that equal base + delta rounded once, None where nothing was compared.
        stored_as: the merged checkpoint's names of it, when they are not its own.
        merged_dtype: the safetensors dtype in the merged checkpoint when it is not the base's.
        slices: for a tensor of several experts, how many have which verdict.
        at_fault: for a tensor of several experts, those at fault.
    """

    key: str
    kind: Kind
    layer: int | None
    expert: int | None
    verdict: Verdict
    detail: str | None = None
    scale: float | None = None
    exact_share: float | None = None
    stored_as: tuple[str, ...] = ()
    merged_dtype: str | None = None
    slices: Mapping[str, int] = field(default_factory=dict)
    at_fault: tuple[int, ...] = ()

    @property
    def targeted(self) -> bool:
        """Whether a lora pair covers it."""
        return self.verdict in TARGETED

    @property
    def ok(self) -> bool:
        """Whether it is what it should be."""
        return self.verdict not in FAULTS

    def to_json(self) -> dict[str, object]:
        """Return the row as JSON-ready values; what does not apply is left out."""
        row: dict[str, object] = {
            "key": self.key,
            "kind": self.kind,
            "layer": self.layer,
            "expert": self.expert,
            "verdict": self.verdict,
        }
        if self.detail is not None:
            row["detail"] = self.detail
        if self.scale is not None:
            row["scale"] = self.scale
        if self.exact_share is not None:
            row["exact_share"] = self.exact_share
        if self.stored_as:
            row["stored_as"] = list(self.stored_as) if len(self.stored_as) <= 2 else f"{len(self.stored_as)} tensors"  # noqa: PLR2004 - gate and up
        if self.merged_dtype is not None:
            row["merged_dtype"] = self.merged_dtype
        if self.slices:
            row["slices"] = dict(self.slices)
        if self.at_fault:
            row["experts_at_fault"] = list(self.at_fault)
        return row


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
        found: dict[Kind, Counter[Verdict]] = {kind: Counter() for kind in KINDS}
        for row in self.rows:
            if row.targeted:
                found[row.kind][row.verdict] += 1
        return {kind: counts for kind, counts in found.items() if counts}

    @property
    def untargeted(self) -> Counter[Verdict]:
        """Tensors that no lora pair covers, by verdict."""
        return Counter(row.verdict for row in self.rows if not row.targeted)

    @property
    def faults(self) -> tuple[TensorVerdict, ...]:
        """The rows that are not what they should be."""
        return tuple(row for row in self.rows if not row.ok)

    @property
    def ok(self) -> bool:
        """Whether every tensor is what it should be, no file is missing, index and config.json agree with the tensors, and it is the base's model."""
        about = (self.missing_files, self.index_problems, self.config_problems, self.config_changes)
        return not (self.faults or any(about))

    @property
    def exit_code(self) -> int:
        """0 when ``ok``, else 1."""
        return 0 if self.ok else 1

    @property
    def sentence(self) -> str:
        """The summary: counts by kind, then what they mean."""
        from harness.merge.auditing.sentence import summarise  # noqa: PLC0415 - the sentence is made from this record

        return summarise(self)

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
