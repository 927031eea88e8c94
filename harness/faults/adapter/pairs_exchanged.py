"""Two Linears of one shape have each other's lora pair: names that were made from a list in another order."""

from __future__ import annotations

from harness.faults.breaking import NothingBrokenError, alter_shards
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Exchange the pairs of the first two Linears of one shape.

    Raises:
        NothingBrokenError: there are no two.
    """
    linears = sorted((pair, tuple(site.deltas[name].shape)) for pair, name in site.pairs.items() if ":" not in name)
    twins = [(one, other) for one, shape in linears for other, same in linears if one < other and shape == same]
    if not twins:
        raise NothingBrokenError("no two Linears have one shape")
    first, second = (f"{pair}.lora_" for pair in twins[0])

    def exchanged(key: str) -> str:
        if key.startswith(first):
            return second + key.removeprefix(first)
        return first + key.removeprefix(second) if key.startswith(second) else key

    alter_shards(site.adapter, lambda tensors: {exchanged(key): tensor for key, tensor in tensors.items()})


FAULT: Fault = MergeFault(
    breaks="exchanges the lora pairs of two Linears",
    where="adapter",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    plant=plant,
)
