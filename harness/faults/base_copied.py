"""The base published as if it were the merge: what an engine leaves behind that matched nothing and said nothing."""

from __future__ import annotations

from harness.faults.fault import Facts, Fault, Site, Where


class BaseCopied:
    """Every delta is dropped."""

    breaks = "publishes the base as it is, every delta dropped"
    where: Where = "merged"
    noticed_by = frozenset({"applied", "kl", "logprob"})
    control = True

    def applies(self, facts: Facts) -> bool:  # noqa: ARG002 - there is always a base
        """A merge of anything is broken by it."""
        return True

    def plant(self, site: Site) -> None:
        """Write the base without a single delta."""
        site.write({})


FAULT: Fault = BaseCopied()
