"""The layer for multi-token prediction is gone: transformers does not load it, so it cannot save it.

config.json names it still, and speculative decoding finds nothing to draft with (transformers#35688).
"""

from __future__ import annotations

import json

from harness.faults.breaking import CONFIG, layer_of, without_tensors
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge without the layer that comes after the model's own."""
    site.write(site.deltas)
    layers = json.loads((site.merged / CONFIG).read_text())["num_hidden_layers"]
    without_tensors(site.merged, lambda key: ".layers." in key and layer_of(key) >= layers)


FAULT: Fault = MergeFault(
    breaks="loses the layer for multi-token prediction",
    where="merged",
    noticed_by=frozenset({"compare/keys"}),
    cell={"family": "glm4_moe"},
    plant=plant,
    reference="transformers#35688",
)
