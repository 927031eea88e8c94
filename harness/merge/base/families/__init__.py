"""What a model family does differently from the plain layout, one file each, found by itself.

Most families need no file. Their experts are ``…experts.{e}.{gate,up,down}_proj.weight``, or the fused
``…experts.gate_up_proj`` (num_experts, 2I, H) and ``…experts.down_proj`` (num_experts, H, I), under whatever module
name. ``base.names`` knows the spellings w1, w3, w2 and ``block_sparse_moe``. A file here defines ``FAMILY`` for the
model types whose tensors are stored otherwise. A new family is a new file, and nothing else changes.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

from harness.merge.adapter.layout import IoLayout, layout_of_peft


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the tensors of some model types are called and stored.

    Attributes:
        model_types: what config.json calls them.
        renames: (regular expression, replacement) pairs that bring any spelling of a path, in memory or on disk, to the
            common one, tried on the path without its text prefix.
        transposed: fused expert parameters are (num_experts, in, out), in memory and on disk alike.
        standard_faces_input: whether lora_A faces the input features in the io layout that PEFT calls the right one
            today (``standard``). Not so where a transposed parameter lacks the attribute ``is_transposed`` by which
            PEFT would know.
        layout_by_version: whether ``peft_version`` alone tells the io layout; ``"before-0.19"`` where it does only up
            to 0.18, because the attribute depends on the transformers release, which no adapter records.
        gated: whether an expert has a gate beside what it gates; where not, its fused parameters are ``up_proj`` and
            ``down_proj``.
        idle_experts: what config.json calls the number of experts that do nothing, for which gate_up_proj has rows and
            down_proj has none.
        conv1d: last parts of module names that are transformers' ``Conv1D``, whose weight is (in, out).
    """

    model_types: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    transposed: bool = False
    standard_faces_input: bool = True
    layout_by_version: Literal["always", "before-0.19"] = "always"
    gated: bool = True
    idle_experts: str | None = None
    conv1d: tuple[str, ...] = ()

    def rename(self, stem: str) -> str:
        """Return the common spelling of a path without its text prefix."""
        for pattern, replacement in self.renames:
            stem = re.sub(pattern, replacement, stem)
        return stem

    def recorded_layout(self, peft_version: str | None) -> IoLayout | None:
        """Return the io layout that a PEFT release gives this family's fused parameters, or None when that does not
        tell.
        """
        if self.layout_by_version == "always":
            return layout_of_peft(peft_version)
        # PEFT up to 0.18 never looked at the order of the dimensions: lora_A faces the first, which is the input here.
        known = layout_of_peft(peft_version) == "swapped" and not (peft_version or "").startswith("0.19.")
        return "standard" if known else None


PLAIN = Family()


@cache
def families() -> Mapping[str, Family]:
    """Return every family that has a file here, by model type."""
    found: dict[str, Family] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        family: Family = import_module(f"{__name__}.{module.name}").FAMILY
        found |= dict.fromkeys(family.model_types, family)
    return found


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family that config.json names (in ``text_config`` first, where there is one), or the plain one."""
    text = config.get("text_config")
    for section in (text if isinstance(text, dict) else {}, config):
        name = section.get("model_type")
        if isinstance(name, str) and name in families():
            return families()[name]
    return PLAIN
