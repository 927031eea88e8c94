"""The base published as if it were the merge: what an engine leaves behind that matched nothing and said nothing."""

from __future__ import annotations

from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write the base without a single delta."""
    site.write({})


FAULT: Fault = MergeFault(
    breaks="publishes the base as it is, every delta dropped",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    control=True,
    plant=plant,
)
