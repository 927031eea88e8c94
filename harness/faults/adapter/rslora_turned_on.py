"""The adapter's configuration says rank-stabilised: alpha is divided by the root of the rank. Training did not."""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import ADAPTER_CONFIG, alter_json
from harness.faults.fault import Facts, Fault, MergeFault, Site


def applies(facts: Facts) -> bool:
    """The root of 1 is 1."""
    return facts.rank > 1


def plant(site: Site) -> None:
    """Turn use_rslora on."""

    def change(config: dict[str, Any]) -> None:
        config["use_rslora"] = True

    alter_json(site.adapter / ADAPTER_CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="turns use_rslora on in the adapter's configuration",
    where="adapter",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    applies=applies,
    plant=plant,
)
