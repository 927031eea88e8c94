"""chat_template.jinja is missing: an engine that copies what ends in .json. tokenizer_config.json still has it.

Newer releases write the file alone, so this loss is the whole template of such a checkpoint.
"""

from __future__ import annotations

from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge and remove its chat_template.jinja."""
    site.write(site.deltas)
    (site.merged / "chat_template.jinja").unlink()


FAULT: Fault = MergeFault(
    breaks="loses chat_template.jinja",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    plant=plant,
)
