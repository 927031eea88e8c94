"""The chat template is missing, from its own file and from tokenizer_config.json: a release that knows neither.

Judged by what the tokenizer does, as an engine is that writes it anew.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge without a chat template."""

    def change(config: dict[str, Any]) -> None:
        del config["chat_template"]

    site.write(site.deltas)
    (site.merged / "chat_template.jinja").unlink()
    alter_json(site.merged / "tokenizer_config.json", change)


FAULT: Fault = MergeFault(
    breaks="loses the chat template",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    cell={"engine": "peft"},
    plant=plant,
)
