"""The summary sentence: counts by kind, an arrow, and what they mean to somebody who trained the adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from harness.merge.auditing.tensor_verdict import (
    FAULTS,
    TARGETED,
    TensorVerdict,
    Verdict,
    count_targeted,
    count_untargeted,
)
from harness.merge.base.names import Kind
from harness.merge.errors import counted

PLURALS: Mapping[Kind, str] = {
    "attention": "attention",
    "expert": "experts",
    "shared_expert": "shared experts",
    "router": "routers",
    "dense": "dense",
    "other": "other",
}
NAMED = {"experts": "expert", "shared experts": "shared-expert", "routers": "router"}
REVERSED = 0.05
"""How far from minus one a fitted scale may be."""


def summarise(
    rows: Sequence[TensorVerdict],
    *,
    missing_files: Sequence[str] = (),
    index_problems: Sequence[str] = (),
    config_problems: Sequence[str] = (),
    config_changes: Sequence[str] = (),
) -> str:
    """Return ``experts 0/18432 applied (untouched: 18432), attention 192/192 applied → the expert adapter was
    dropped``.

    The arguments are the fields of ``AuditReport`` of the same names.
    """
    by_kind = count_targeted(rows)
    counts = ", ".join(_counts(kind, by_verdict) for kind, by_verdict in by_kind.items())
    meaning = [*_about_the_adapter(rows, by_kind), *_about_the_other_tensors(rows)]
    if missing_files:
        meaning.append(f"missing: {', '.join(missing_files)}")
    if index_problems:
        meaning.append("the index and the shards disagree")
    if config_problems:
        meaning.append("config.json and the tensors disagree")
    if config_changes:
        meaning.append("config.json describes another model than the base's")
    return f"{counts} → {'; '.join(meaning)}"


def _counts(kind: Kind, by_verdict: Counter[Verdict]) -> str:
    others = [f"{name}: {by_verdict[name]}" for name in TARGETED if name != "applied" and by_verdict[name]]
    aside = f" ({', '.join(others)})" if others else ""
    return f"{PLURALS[kind]} {by_verdict['applied']}/{by_verdict.total()} applied{aside}"


def _about_the_adapter(rows: Sequence[TensorVerdict], kinds: Mapping[Kind, Counter[Verdict]]) -> Iterator[str]:
    dropped = [kind for kind, counts in kinds.items() if _only(counts, "untouched")]
    telling = [kind for kind, counts in kinds.items() if not _only(counts, "indistinguishable")]
    if not telling:
        yield "nothing that the adapter changes can be told from the base"
    elif dropped == telling:
        yield "the whole adapter was dropped: this is the base"
    elif _reversed(rows):
        yield "the adapter was taken off, not added: the base and the merged checkpoint look exchanged"
    else:
        for kind in telling:
            yield from _about(rows, kind, kinds[kind], whole=kind in dropped)
        if not any(row.verdict in FAULTS for row in rows if row.targeted):
            yield "the adapter is merged"
        elif all(_only(kinds[kind], "wrong") for kind in telling):
            yield (
                "nothing fits: it may be merged into another base (after a QLoRA, the dequantised one);"
                " audit it against that one"
            )


def _about_the_other_tensors(rows: Sequence[TensorVerdict]) -> Iterator[str]:
    changed = count_untargeted(rows)["changed"]
    if changed:
        absent = sum(row.detail == "absent" for row in rows if row.verdict == "changed")
        told = f"{counted(changed, 'tensor')} that the adapter does not cover {'is' if changed == 1 else 'are'}"
        yield (
            f"{told} absent"
            if absent == changed
            else f"{told} not the base's" + (f" ({absent} absent)" if absent else "")
        )


def _only(counts: Counter[Verdict], verdict: Verdict) -> bool:
    """Return whether all tensors whose delta can be seen have this verdict (or, for indistinguishable, whether none
    can).
    """
    rest = {name for name, count in counts.items() if count and name != "indistinguishable"}
    return not rest if verdict == "indistinguishable" else rest == {verdict}


def _reversed(rows: Sequence[TensorVerdict]) -> bool:
    """Return whether every delta that can be seen is there at minus one times its scale."""
    telling = [row for row in rows if row.targeted and row.verdict != "indistinguishable"]
    return all(row.verdict == "partial" and abs((row.scale or 0) + 1) < REVERSED for row in telling)


def _about(every: Sequence[TensorVerdict], kind: Kind, counts: Counter[Verdict], *, whole: bool) -> Iterator[str]:
    name = NAMED.get(PLURALS[kind], PLURALS[kind])
    if whole:
        yield f"the {name} adapter was dropped"
        return
    rows = [row for row in every if row.targeted and row.kind == kind]
    if counts["untouched"]:
        yield f"{_how_many(rows, 'untouched', name)} left out"
    if counts["partial"]:
        yield f"{_how_many(rows, 'partial', name)} applied at {_scales(rows, 'partial')} times the scale"
    if counts["scrambled"]:
        yield f"{_how_many(rows, 'scrambled', name)} scrambled ({_commonest(rows, 'scrambled')})"
    if counts["wrong"]:
        yield f"{_how_many(rows, 'wrong', name)} wrong"
    if counts["missing"]:
        yield f"{_how_many(rows, 'missing', name)} missing"


def _how_many(rows: list[TensorVerdict], verdict: Verdict, name: str) -> str:
    found = [row for row in rows if row.verdict == verdict]
    faulty, held = sum(len(row.at_fault) for row in found), sum(sum(row.slices.values()) for row in found)
    tensors = counted(len(found), f"{name} tensor")
    if faulty < held:
        tensors += f" ({faulty} of their {counted(held, 'expert')})"
    return f"{tensors} {'were' if len(found) > 1 else 'was'}"


def _scales(rows: list[TensorVerdict], verdict: Verdict) -> str:
    scales = sorted({float(f"{row.scale:.3g}") for row in rows if row.verdict == verdict and row.scale is not None})
    return f"{scales[0]:g}" if len(scales) == 1 else f"{scales[0]:g} to {scales[-1]:g}"


def _commonest(rows: list[TensorVerdict], verdict: Verdict) -> str:
    details = Counter(_generic(row.detail or "") for row in rows if row.verdict == verdict)
    return details.most_common(1)[0][0]


def _generic(detail: str) -> str:
    """Return a detail without the number of an expert, which differs in every row."""
    if "of expert " in detail or detail.startswith("expert "):
        return "experts in another order"
    return detail
