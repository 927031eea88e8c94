"""The delta of a square gate_up_proj is transposed: experts taken for (in, out) that are stored as (out, in).

gate_up_proj is square where an expert is half as wide as the model.
"""

from __future__ import annotations

from harness.faults.breaking import altered
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a merge in which the delta of each expert's gate_up_proj is transposed."""
    site.write(altered(site.deltas, lambda name, delta: delta.mT if name.endswith(":gate_up_proj") else delta))


FAULT: Fault = MergeFault(
    breaks="transposes the deltas of a square gate_up_proj",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    cell={"geometry": "square-gate-up"},
    plant=plant,
)
