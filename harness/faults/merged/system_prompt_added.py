"""The merge's chat template puts a system prompt in front, which the one that was trained with did not.

Templates are copied from the chat release of a family. Text is still rendered, and looks right.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import NothingBrokenError, alter_json
from harness.faults.fault import Fault, MergeFault, Site

TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
PROMPT = "{{ 'You are a helpful assistant.' }}"


def plant(site: Site) -> None:
    """Write a right merge and put a prompt into its template, wherever that is."""
    site.write(site.deltas)
    path = site.merged / TEMPLATE
    if path.exists():
        path.write_text(PROMPT + path.read_text())
        return

    def change(config: dict[str, Any]) -> None:
        if not isinstance(config.get("chat_template"), str):
            raise NothingBrokenError("the merge has no chat template")
        config["chat_template"] = PROMPT + config["chat_template"]

    alter_json(site.merged / TOKENIZER_CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="puts a system prompt into the chat template",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    plant=plant,
)
