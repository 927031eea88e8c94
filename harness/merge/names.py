"""From a module's path in memory to keys on disk.

Paths differ by a prefix: the language model of a composite model is ``model.language_model.`` in some transformers releases
and in published files, ``model.`` in others. Only those prefixes are exchanged, only in front of a decoder layer (or the
final norm or embeddings), so that other stacks of layers in the same file (``mtp.layers.0``, a vision tower) are never taken for the decoder's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from harness.merge.errors import AdapterMismatchError

Kind = Literal["attention", "expert", "shared_expert", "router", "dense", "other"]
KINDS: tuple[Kind, ...] = ("attention", "expert", "shared_expert", "router", "dense", "other")

TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "model.", "")
HEAD_PREFIXES = ("", "language_model.", "model.")

_STEM = re.compile(r"layers\.(\d+)\.|embed_tokens$|norm$")
_EXPERT_KEY = re.compile(
    r"(?P<path>.+\.experts)\.(?:(?P<expert>0|[1-9]\d{0,8})\.(?P<leaf>[A-Za-z0-9_]+)\.weight|(?P<parameter>gate_up_proj|down_proj))"
)
_FUSED_MODULE = re.compile(r"(?P<path>.+\.experts)(?:\.base_layer)*")
_EXPERT_MODULE = re.compile(r"(?P<path>.+\.experts)\.(?P<expert>0|[1-9]\d{0,8})\.(?P<leaf>[A-Za-z0-9_]+)")

PARTS: dict[str, tuple[str, ...]] = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Which per-expert Linears a fused parameter stacks along its output axis, in that order (transformers 5.x)."""


def split(path: str) -> tuple[str, str] | None:
    """Return (text prefix, stem) of a path in the decoder, or None for a path outside it.

    >>> split("model.language_model.layers.3.mlp.gate")
    ('model.language_model.', 'layers.3.mlp.gate')
    """
    for prefix in TEXT_PREFIXES:
        if path.startswith(prefix) and _STEM.match(path, len(prefix)):
            return prefix, path[len(prefix) :]
    return None


def layer_of(path: str) -> int | None:
    """Return the decoder layer that a path or key lies in, or None outside the decoder."""
    parts = split(path)
    match = _STEM.match(parts[1]) if parts else None
    return int(match[1]) if match and match[1] is not None else None


def candidates(path: str) -> tuple[str, ...]:
    """Return every path on disk that the memory path may stand for, itself among them."""
    if path.rpartition(".")[2] == "lm_head":
        return tuple(f"{prefix}lm_head" for prefix in HEAD_PREFIXES)
    parts = split(path)
    if parts is None:
        return (path,)
    return tuple(f"{prefix}{parts[1]}" for prefix in TEXT_PREFIXES)


def locate(path: str, exists: Callable[[str], bool]) -> str | None:
    """Return the one candidate on disk, or None when there is none.

    Raises:
        AdapterMismatchError: the base holds the module under two prefixes, and nothing says which is meant.
    """
    found = [candidate for candidate in candidates(path) if exists(candidate)]
    if len(found) > 1:
        raise AdapterMismatchError(f"{path} could be any of {', '.join(found)}: the base holds them all.")
    return found[0] if found else None


def kind_of(key: str) -> Kind:
    """Return what a tensor key or module path is part of."""
    if ".experts." in key or key.endswith(".experts"):
        return "expert"
    if ".shared_expert" in key:
        return "shared_expert"
    if re.search(r"\.(self_attn|linear_attn|attention)\.", key):
        return "attention"
    if re.search(r"\.(mlp\.gate|router)(\.|$)", key):
        return "router"
    if re.search(r"\.mlp\.(gate_proj|up_proj|down_proj|gate_up_proj)(\.|$)", key):
        return "dense"
    return "other"


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


def expert_keys(keys: Iterable[str]) -> dict[str, ExpertKeys]:
    """Return the keys of every experts module on disk, by the module's path."""
    found: dict[str, ExpertKeys] = {}
    for key in keys:
        match = _EXPERT_KEY.fullmatch(key)
        if match is None:
            continue
        module = found.setdefault(match["path"], ExpertKeys())
        if match["parameter"]:
            module.fused[match["parameter"]] = key
        else:
            module.linears.setdefault(match["leaf"], {})[int(match["expert"])] = key
    return found
