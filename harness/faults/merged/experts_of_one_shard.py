"""The number of experts is counted from the keys of one shard, where experts span several.

unsloth-zoo did so at first (unsloth-zoo#647). The lora pair is then cut into too few experts of too high a rank, and
the experts beyond that number keep the base's weights.
"""

from __future__ import annotations

import json
import re

from harness.faults.breaking import ADAPTER_CONFIG, ADAPTER_FILE, NothingBrokenError, several_experts
from harness.faults.fault import Fault, MergeFault, Site
from harness.faults.merged.b_packing import expert_deltas


def plant(site: Site) -> None:
    """Write a merge in which each layer has the experts that its first shard names.

    Raises:
        NothingBrokenError: that is all of them.
    """
    import torch
    from safetensors.torch import load_file

    saved = load_file(site.adapter / ADAPTER_FILE)
    config = json.loads((site.adapter / ADAPTER_CONFIG).read_text())
    keys = load_file(min(site.base.glob("*.safetensors")))
    deltas, misread = dict(site.deltas), 0
    for pair, name in site.pairs.items():
        found = {at[1] for key in keys if (at := re.match(rf"{re.escape(name.partition(':')[0])}\.(\d+)\.", key))}
        if ":" not in name or not 0 < len(found) < len(deltas[name]):
            continue
        a, b = (saved[f"{pair}.lora_{part}.weight"].double() for part in "AB")
        shape = (len(found), *deltas[name].shape[1:])
        scaling, packing = config["lora_alpha"] / config["r"], str(site.facts.b_packing)
        wrong = expert_deltas(a, b, scaling, shape, packing, site.facts.io_layout)
        deltas[name] = torch.cat([wrong, torch.zeros_like(deltas[name][len(found) :])])
        misread += 1
    if not misread:
        raise NothingBrokenError("the first shard names all experts")
    site.write(deltas)


FAULT: Fault = MergeFault(
    breaks="counts the experts of a layer from one shard's keys",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    applies=several_experts,
    plant=plant,
    reference="unsloth-zoo#647",
)
