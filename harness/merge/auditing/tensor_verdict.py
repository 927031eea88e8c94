"""What became of one tensor of the base: the row of an audit's report, and counts over rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from harness.merge.base.names import KINDS, Kind

Verdict = Literal[
    "applied", "indistinguishable", "untouched", "partial", "scrambled", "wrong", "missing", "same", "changed"
]
TARGETED: tuple[Verdict, ...] = (
    "applied", "indistinguishable", "untouched", "partial", "scrambled", "wrong", "missing",
)  # fmt: skip
"""What a targeted tensor can be; from ``untouched`` on each is a fault, the later the worse."""
UNTARGETED: tuple[Verdict, ...] = ("same", "changed")
FAULTS = frozenset({"untouched", "partial", "scrambled", "wrong", "missing", "changed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorVerdict:
    """What became of one tensor of the base.

    Attributes:
        key: its name in the base.
        kind: what it is part of.
        layer: its decoder layer, or None outside the decoder.
        expert: which expert's it is, or None for a tensor that holds all of them, or none.
        verdict: one of ``TARGETED`` or, for a tensor that no lora pair covers, of ``UNTARGETED``. A fused tensor has
            the worst of its experts' verdicts; ``slices`` counts them.
        detail: how exactly it was applied (``bit-exact``, ``1-ulp``, ``bf16-double-rounded``, ``low-precision``), why
            it may equal the base (``zero-delta``, ``below-rounding``), or what it holds instead, in words.
        scale: the fitted factor on the adapter's own scaling, for ``partial`` (and a scrambled delta that is also
            scaled).
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


def count_targeted(rows: Iterable[TensorVerdict]) -> dict[Kind, Counter[Verdict]]:
    """Return targeted tensors by verdict, for each kind that has any, in a fixed order of kinds."""
    found: dict[Kind, Counter[Verdict]] = {kind: Counter() for kind in KINDS}
    for row in rows:
        if row.targeted:
            found[row.kind][row.verdict] += 1
    return {kind: counts for kind, counts in found.items() if counts}


def count_untargeted(rows: Iterable[TensorVerdict]) -> Counter[Verdict]:
    """Return tensors that no lora pair covers, by verdict."""
    return Counter(row.verdict for row in rows if not row.targeted)
