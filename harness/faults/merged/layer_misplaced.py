"""The second layer has the first one's deltas: an index of layers that is off by one, in a cache or in a name."""

from __future__ import annotations

from harness.faults.breaking import altered, layer_of
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a merge in which layer 1 has the deltas of layer 0, where both have the same parts."""
    site.write(
        altered(
            site.deltas,
            lambda name, delta: (
                site.deltas.get(name.replace(".layers.1.", ".layers.0."), delta) if layer_of(name) == 1 else delta
            ),
        )
    )


FAULT: Fault = MergeFault(
    breaks="puts the deltas of the first layer on the second",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    plant=plant,
)
