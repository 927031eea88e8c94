"""Rows of new tokens are there, and empty: a vocabulary that was padded, where it should have been taken over."""

from __future__ import annotations

from harness.faults.breaking import altered
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge but for the embeddings of new tokens, which are zero."""
    site.write(altered(site.deltas, lambda name, delta: 0 * delta if name == "model.embed_tokens" else delta))


FAULT: Fault = MergeFault(
    breaks="writes zeros for the embeddings of new tokens",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl"}),
    cell={"recipe": "lora-resized"},
    plant=plant,
)
