"""A LoRA on embeddings that are the head too is added to both: PEFT's own merge of tied weights."""

from __future__ import annotations

from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a merge whose head has the embeddings' delta."""
    site.write({**site.deltas, "lm_head": site.deltas["model.embed_tokens"]})


FAULT: Fault = MergeFault(
    breaks="adds the delta of tied embeddings to the head",
    where="merged",
    noticed_by=frozenset({"compare/untouched_bytes", "compare/kl"}),
    cell={"recipe": "lora-embeddings", "variant": "tied"},
    plant=plant,
    reference="peft#2018",
)
