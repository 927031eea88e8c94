"""config.json of the merge names the model without its head, whose class the merge script had loaded.

transformers goes by the model type. Servers go by ``architectures``, and serve embeddings.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import CONFIG, alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge and name another architecture."""
    site.write(site.deltas)

    def change(config: dict[str, Any]) -> None:
        names = config.get("architectures") or []
        config["architectures"] = [
            name.replace("ForCausalLM", "Model").replace("ForConditionalGeneration", "Model") for name in names
        ]

    alter_json(site.merged / CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="names the model without its head in config.json",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    plant=plant,
)
