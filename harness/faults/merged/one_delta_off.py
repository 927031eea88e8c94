"""One delta a little too large: a scaling that was rounded, a rank that was miscounted, an expert merged twice in part.

No model says anything else for it. The bytes do.
"""

from __future__ import annotations

from harness.faults.fault import Fault, MergeFault, Site

SHARE = {"float32": 1e-4, "bf16": 0.1}
"""How much too large, by what the dtype can show at all."""


def plant(site: Site) -> None:
    """Write a merge in which the delta of one Linear, or of one expert, is too large."""
    name = min(site.deltas)
    delta = site.deltas[name].clone()
    delta[0 if ":" in name else slice(None)] *= 1 + SHARE[site.facts.dtype]
    site.write({**site.deltas, name: delta})


FAULT: Fault = MergeFault(
    breaks="makes one delta a ten-thousandth too large, or a tenth in bf16",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/exact"}),
    control=True,
    plant=plant,
)
