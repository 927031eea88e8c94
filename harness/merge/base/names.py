"""From a module's path in memory to keys on disk: every spelling of a path is brought to one, and those are compared.

Paths differ by a prefix. The language model of a composite model is ``model.language_model.`` in some transformers
releases and in published files, ``model.`` in others. Only those prefixes are taken off, and only in front of a decoder
layer (or the final norm or embeddings). So other runs of layers in the same file (``mtp.layers.0``, a vision tower) are
never taken for the decoder's.

Paths differ by names inside, too. What transformers 5 calls ``mlp.experts`` is ``block_sparse_moe.experts`` on disk in
mixtral and its kin, with w1, w3 and w2 for gate, up and down (``transformers.conversion_mapping``, 5.0 to 5.23). What
else a family renames stands in ``families``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from harness.merge.base.families import PLAIN, Family

Kind = Literal["attention", "expert", "shared_expert", "router", "dense", "other"]
KINDS: tuple[Kind, ...] = ("attention", "expert", "shared_expert", "router", "dense", "other")

REMEMBERED = 2**18
"""Paths whose parts are remembered: planning asks for each several times, and large checkpoints have a hundred
thousand.
"""

TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "model.", "")

_STEM = re.compile(r"layers\.(\d+)\.|(?:embed_tokens|norm)(?:\.|$)")
_HEAD = re.compile(r"(?:language_model\.|model\.)?(lm_head(?:\.|$).*)")
_EXPERT_KEY = re.compile(
    r"(?P<path>.+\.experts)\.(?:(?P<expert>0|[1-9]\d{0,8})\.(?P<leaf>[A-Za-z0-9_]+)\.weight|(?P<parameter>gate_up_proj|down_proj))"
)
_FUSED_MODULE = re.compile(r"(?P<path>.+\.experts)(?:\.base_layer)*")
_EXPERT_MODULE = re.compile(r"(?P<path>.+\.experts)\.(?P<expert>0|[1-9]\d{0,8})\.(?P<leaf>[A-Za-z0-9_]+)")
_NUMBERED_LEAF = re.compile(r"(\.experts\.\d+\.)(w[123])(?=\.|$)")
_NUMBERED = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}

PARTS: dict[str, tuple[str, ...]] = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Which per-expert Linears a fused parameter holds, one after the other along its output axis (transformers 5.x)."""
UNGATED: dict[str, tuple[str, ...]] = {"up_proj": ("up_proj",), "down_proj": ("down_proj",)}
"""The same where experts have no gate."""


def parts_of(family: Family) -> dict[str, tuple[str, ...]]:
    """Return which Linears each fused parameter of a family holds."""
    return PARTS if family.gated else UNGATED


PARAMETER_OF = {part: parameter for parameter, parts in PARTS.items() for part in parts}
"""Which fused parameter holds a per-expert Linear."""


@lru_cache(maxsize=REMEMBERED)
def split(path: str) -> tuple[str, str] | None:
    """Return (text prefix, stem) of a path in the decoder, or None for a path outside it.

    >>> split("model.language_model.layers.3.mlp.gate")
    ('model.language_model.', 'layers.3.mlp.gate')
    """
    for prefix in TEXT_PREFIXES:
        if path.startswith(prefix) and _STEM.match(path, len(prefix)):
            return prefix, path[len(prefix) :]
    return None


@lru_cache(maxsize=REMEMBERED)
def common(path: str, family: Family = PLAIN) -> str:
    """Return the spelling that all spellings of a path or key share: no text prefix, common names.

    >>> common("model.language_model.layers.3.block_sparse_moe.experts.0.w1.weight")
    'layers.3.mlp.experts.0.gate_proj.weight'
    """
    if head := _HEAD.fullmatch(path):
        return head[1]
    parts = split(path)
    if parts is None:
        return family.rename(path)
    stem = parts[1].replace(".block_sparse_moe.", ".mlp.")
    stem = _NUMBERED_LEAF.sub(lambda match: match[1] + _NUMBERED[match[2]], stem)
    return family.rename(stem)


def layer_of(path: str) -> int | None:
    """Return the decoder layer that a path or key lies in, or None outside the decoder."""
    parts = split(path)
    match = _STEM.match(parts[1]) if parts else None
    return int(match[1]) if match and match[1] is not None else None


_KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("other", re.compile(r"\.visual\.|vision")),
    ("expert", re.compile(r"\.experts(\.|$)|\.block_sparse_moe\.(input|output)_linear(\.|$)")),
    ("shared_expert", re.compile(r"\.shared_(expert|mlp)")),
    ("attention", re.compile(r"\.(self_attn|linear_attn|attention|attn)\.")),
    ("router", re.compile(r"\.((mlp|block_sparse_moe|feed_forward)\.gate|router)(\.|$)")),
    ("dense", re.compile(r"\.(mlp|feed_forward)\.(gate_proj|up_proj|down_proj|gate_up_proj|c_fc|c_proj)(\.|$)")),
)
"""The first that matches decides; a vision tower has attention, but not the decoder's."""


def kind_of(key: str) -> Kind:
    """Return what a tensor key or module path is part of."""
    return next((kind for kind, pattern in _KINDS if pattern.search(key)), "other")


def fused_module(module: str) -> str | None:
    """Return the path of the experts module when ``module`` wraps one of its parameters, else None."""
    match = _FUSED_MODULE.fullmatch(module)
    return match["path"] if match else None


def expert_module(module: str) -> tuple[str, int, str] | None:
    """Return (experts path, expert, leaf) of a per-expert Linear, else None."""
    match = _EXPERT_MODULE.fullmatch(module)
    return (match["path"], int(match["expert"]), match["leaf"]) if match else None


@dataclass(kw_only=True)
class ExpertKeys:
    """The on-disk keys of one experts module: fused parameters by name, and Linears by leaf and expert number."""

    fused: dict[str, str] = field(default_factory=dict)
    linears: dict[str, dict[int, str]] = field(default_factory=dict)


def expert_keys(spellings: Iterable[tuple[str, str]]) -> dict[str, ExpertKeys]:
    """Return the keys of every experts module on disk, by the module's path in the common spelling.

    Args:
        spellings: (common spelling, key) of every tensor.
    """
    found: dict[str, ExpertKeys] = {}
    for spelling, key in spellings:
        match = _EXPERT_KEY.fullmatch(spelling)
        if match is None:
            continue
        module = found.setdefault(match["path"], ExpertKeys())
        if match["parameter"]:
            module.fused[match["parameter"]] = key
        else:
            module.linears.setdefault(match["leaf"], {})[int(match["expert"])] = key
    return found


def fused_parameter(spelling: str) -> tuple[str, str] | None:
    """Return (experts path, parameter) when a common spelling is that of a fused expert parameter, else None."""
    match = _EXPERT_KEY.fullmatch(spelling)
    return (match["path"], match["parameter"]) if match and match["parameter"] else None
