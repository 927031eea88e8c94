"""Deltas of experts are dealt out in the order of the experts' keys as text: 0, 1, 10, 11, 2.

A merge script lists the keys of a shard with ``sorted`` and pairs them with the experts of the adapter.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import altered
from harness.faults.fault import Facts, Fault, MergeFault, Site

DIGITS = 10


def more_than_ten_experts(facts: Facts) -> bool:
    """Whether numbers and text sort the experts differently."""
    return facts.num_experts is not None and facts.num_experts > DIGITS


def plant(site: Site) -> None:
    """Give the expert that is n-th as text the delta of the n-th."""

    def change(name: str, delta: Any) -> Any:
        if ":" not in name or delta.shape[0] <= DIGITS:
            return delta
        as_text = sorted(range(delta.shape[0]), key=str)
        new = delta.clone()
        for place, expert in enumerate(as_text):
            new[expert] = delta[place]
        return new

    site.write(altered(site.deltas, change))


FAULT: Fault = MergeFault(
    breaks="deals out the experts' deltas in the order of their numbers as text",
    where="merged",
    noticed_by=frozenset({"compare/kl", "compare/logprob", "compare/applied", "compare/exact"}),
    applies=more_than_ten_experts,
    cell={"geometry": "many"},
    plant=plant,
)
