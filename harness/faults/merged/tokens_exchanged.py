"""Two tokens have each other's number in tokenizer.json: a vocabulary that was written from an unordered set.

Judged by what the tokenizer does, as an engine is that writes it anew.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge whose tokenizer has exchanged its last two tokens."""

    def change(tokenizer: dict[str, Any]) -> None:
        vocab = tokenizer["model"]["vocab"]
        *_, first, second = sorted(vocab, key=lambda token: vocab[token])
        vocab[first], vocab[second] = vocab[second], vocab[first]

    site.write(site.deltas)
    alter_json(site.merged / "tokenizer.json", change)


FAULT: Fault = MergeFault(
    breaks="exchanges two tokens of the tokenizer",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    cell={"engine": "peft"},
    plant=plant,
)
