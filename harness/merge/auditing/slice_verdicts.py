"""From what the slices of one tensor hold to the tensor's row in the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.merge.auditing.pairing import Pairing
from harness.merge.auditing.tensor_verdict import FAULTS, TensorVerdict, Verdict
from harness.merge.base.names import expert_module, kind_of, layer_of

SEVERITY: tuple[str, ...] = ("indistinguishable", "applied", "untouched", "partial", "scrambled", "wrong", "missing")
CARE: tuple[str, ...] = ("bit-exact", "bf16-double-rounded", "fp16-double-rounded", "1-ulp", "low-precision")
"""How applied deltas were applied, the closest first."""
NAMED_EXPERTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one slice holds; ``number`` is its expert's."""

    number: int | None
    verdict: str
    detail: str
    scale: float | None = None
    exact: int = 0
    elements: int = 0


def row_of(
    key: str,
    verdict: Verdict,
    pairing: Pairing,
    *,
    detail: str | None = None,
    dtypes: Iterable[str] = (),
    expert: int | None = None,
    found: Sequence[Found] = (),
) -> TensorVerdict:
    """Return the row of a tensor; ``dtypes`` are those in the merged checkpoint that are not the right one."""
    by_number: dict[int, Found] = {}
    for one in found:
        if one.number is not None and (one.number not in by_number or _worse(one, by_number[one.number])):
            by_number[one.number] = one
    several = expert is None and len(by_number) > 1
    scales = [one.scale for one in found if one.scale is not None]
    elements = sum(one.elements for one in found)
    single = expert_module(key.removesuffix(".weight"))
    faulty = (number for number, one in by_number.items() if one.verdict in FAULTS)
    return TensorVerdict(
        key=key,
        kind=kind_of(key),
        layer=layer_of(key),
        expert=single[1] if single and expert is None else expert,
        verdict=verdict,
        detail=detail,
        scale=scales[0] if scales else None,
        exact_share=sum(one.exact for one in found) / elements if elements else None,
        stored_as=() if pairing.keys == (key,) else pairing.keys,
        merged_dtype=", ".join(sorted(set(dtypes))) or None,
        slices=dict(Counter(one.verdict for one in by_number.values())) if several else {},
        at_fault=tuple(sorted(faulty)) if several else (),
    )


def summed(found: Sequence[Found]) -> tuple[Verdict, str]:
    """Return the verdict on a tensor from those on its slices: the worst, with the experts named that have it."""
    worst = max(found, key=lambda one: SEVERITY.index(one.verdict)).verdict
    having = [one for one in found if one.verdict == worst]
    if worst == "applied":
        detail = max((one.detail for one in having), key=CARE.index)
    elif len({one.detail for one in having}) == 1:
        detail = having[0].detail
    elif worst == "indistinguishable":
        detail = "below-rounding"
    else:
        shown = [f"expert {one.number}: {one.detail}" if one.number is not None else one.detail for one in having]
        more = f"; and {len(shown) - NAMED_EXPERTS} more" if len(shown) > NAMED_EXPERTS else ""
        detail = "; ".join(shown[:NAMED_EXPERTS]) + more
    verdict: Verdict = worst  # type: ignore[assignment]  # slices and tensors share the names of the verdicts
    return verdict, detail


def _worse(one: Found, other: Found) -> bool:
    return SEVERITY.index(one.verdict) > SEVERITY.index(other.verdict)
