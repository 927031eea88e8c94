"""The rank counts as 1, so that an adapter on E experts of rank r is read as one on E * r experts.

The fallback of unsloth-zoo's merge asked for an attribute ``rank`` that no layer has (review of unsloth-zoo#647).
Expert e then gets row e of lora_A and column e of lora_B.
"""

from __future__ import annotations

import json

from harness.faults.breaking import ADAPTER_CONFIG, ADAPTER_FILE, several_experts
from harness.faults.fault import Facts, Fault, MergeFault, Site


def applies(facts: Facts) -> bool:
    """With rank 1 it counts rightly."""
    return several_experts(facts) and facts.rank > 1


def plant(site: Site) -> None:
    """Write a merge in which fused experts have a delta of one row and one column."""
    import torch
    from safetensors.torch import load_file

    saved = load_file(site.adapter / ADAPTER_FILE)
    config = json.loads((site.adapter / ADAPTER_CONFIG).read_text())
    deltas = dict(site.deltas)
    for pair, name in site.pairs.items():
        if ":" in name:
            experts = deltas[name].shape[0]
            a, b = (saved[f"{pair}.lora_{part}.weight"].double() for part in "AB")
            delta = torch.einsum("oe,ei->eoi", b[:, :experts], a[:experts]) * (config["lora_alpha"] / config["r"])
            deltas[name] = delta if site.facts.io_layout == "standard" else delta.mT
    site.write(deltas)


FAULT: Fault = MergeFault(
    breaks="reads the lora pairs of experts as if their rank were 1",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    applies=applies,
    plant=plant,
    reference="unsloth-zoo#647",
)
