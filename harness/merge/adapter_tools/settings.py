"""adapter_config.json of a converted adapter: what PEFT of the new layout reads.

Targets are renamed, patterns are added where a renamed module would otherwise get another rank or alpha, and what
records the layout (``peft_version``, ``lora_B_layout``) says the new one. Everything else stays as it was.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from harness.merge.adapter.config import AdapterConfig, parse_adapter_config
from harness.merge.adapter.layout import IoLayout, layout_of_peft
from harness.merge.adapter.patterns import PatternTable
from harness.merge.errors import UnsupportedAdapterError

RELEASES: Mapping[IoLayout, str] = {"swapped": "0.18.1", "standard": "0.19.1"}
"""A release of PEFT that writes each io layout."""

Wanted = Mapping[str, tuple[int, float]]
"""Rank and alpha that each adapted module or parameter must get, by the name that PEFT's patterns see."""


def encode(config: Mapping[str, Any]) -> bytes:
    """Return the text that PEFT writes (``PeftConfigMixin.save_pretrained``): sorted, indented by two, no final line
    end.
    """
    return json.dumps(config, indent=2, sort_keys=True).encode()


def record_layout(config: dict[str, Any], layout: IoLayout) -> None:
    """Make ``peft_version`` name a release that writes ``layout``, if it does not already."""
    recorded = config.get("peft_version")
    if layout_of_peft(recorded if isinstance(recorded, str) else None) != layout:
        config["peft_version"] = RELEASES[layout]


def record_packing(config: dict[str, Any], packing: str | None) -> None:
    """Make ``lora_B_layout`` say how lora_B is packed.

    PEFT's own packing needs no marker, and nothing fused has none.
    """
    if packing is None or (packing == "rank_major" and "lora_B_layout" not in config):
        config.pop("lora_B_layout", None)
    else:
        config["lora_B_layout"] = packing


def settle_patterns(config: dict[str, Any], wanted: Wanted) -> None:
    """Add rank and alpha patterns until every name gets what it must.

    Raises:
        UnsupportedAdapterError: older patterns stand in the way (the first that matches counts, and files are sorted).
    """
    for field, position, default in (("rank_pattern", 0, "r"), ("alpha_pattern", 1, "lora_alpha")):
        patterns: dict[str, float] = dict(config.get(field) or {})
        table = PatternTable(patterns, field)
        needed: dict[float, set[str]] = defaultdict(set)
        for name, values in wanted.items():
            if table.value(name, config[default]) != values[position]:
                needed[values[position]].add(_general(name))
        for value, names in needed.items():
            patterns |= dict.fromkeys(sorted(names), value)
        config[field] = patterns
    _check(parse_adapter_config(json.loads(encode(config))), wanted)


def _general(name: str) -> str:
    """Return a regular expression for a name: any expert of its layer, and otherwise it alone."""
    escaped = re.escape(name).replace(r"\_", "_")
    return re.sub(r"(\\\.experts\\\.)\d+(\\\.)", r"\1\\d+\2", escaped)


def _check(config: AdapterConfig, wanted: Wanted) -> None:
    for name, (rank, alpha) in wanted.items():
        got = (
            config.rank_pattern.value(name, config.r),
            config.alpha_pattern.value(name, config.lora_alpha),
        )
        if got != (rank, alpha):
            raise UnsupportedAdapterError(
                f"rank and alpha of {name} cannot be expressed beside the adapter's own patterns: {got} instead of"
                f" {(rank, alpha)}."
            )
