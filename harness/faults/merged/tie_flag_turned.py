"""config.json says that the output matrix is the embedding, which it is not.

transformers 5 sees two different tensors and does not tie them. Loaders that believe the file lose the output matrix.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import CONFIG, alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge whose config.json has tie_word_embeddings turned over."""

    def change(config: dict[str, Any]) -> None:
        config["tie_word_embeddings"] = not config["tie_word_embeddings"]

    site.write(site.deltas)
    alter_json(site.merged / CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="turns tie_word_embeddings over in config.json",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    cell={"engine": "peft"},
    plant=plant,
    reference="LLaMA-Factory#10832",
)
