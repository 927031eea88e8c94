"""Which tensors of a merged directory stand for which of the base, where an engine writes them under other names.

Two rules and no more, both read off what ``save_pretrained`` of transformers 5.5.0 to 5.23.0 does. A *prefix* may be
another one that the family is published with. *Experts* that lie fused on disk may be written one by one. Whether this
release loads the new names as it loads the old is not decided here. The stage reload-merged loads them, and fails where
one is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.worker.checkpoints.tensors import TensorSpec

APART = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""A fused parameter → the Linears of one expert that its rows are, in order."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What stands for a tensor of the base.

    Attributes:
        tensor: in the base's shape; None where nothing stands for it.
        keys: the keys it was read from.
        rule: how they differ from the base's own, in words; None where they do not.
    """

    tensor: Any | None
    keys: tuple[str, ...] = ()
    rule: str | None = None


def find(spec: TensorSpec, tensors: Mapping[str, Any], prefixes: Sequence[str] = ()) -> Found:
    """Return what stands for ``spec`` among the tensors of a merged directory.

    The base's own key wins. Another name is looked for only where that key is absent, so a second copy stays
    unexpected.

    Args:
        spec: the tensor of the base.
        tensors: key → tensor of the merged directory.
        prefixes: prefixes that are the same for the family, ``("model.language_model.", "model.")``.
    """
    own = next((prefix for prefix in prefixes if spec.key.startswith(prefix)), "")
    for prefix in (own, *(other for other in prefixes if other != own and own)):
        key = prefix + spec.key.removeprefix(own)
        renamed = [] if prefix == own else [f"{own}* as {prefix}*"]
        if key in tensors:
            return Found(tensor=tensors[key], keys=(key,), rule=" and ".join(renamed) or None)
        if (found := _apart(spec, key, tensors)) is not None:
            rule = " and ".join([*renamed, "fused experts one by one"])
            return Found(tensor=found[0], keys=found[1], rule=rule)
    return Found(tensor=None)


def _apart(spec: TensorSpec, key: str, tensors: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]] | None:
    """Return fused experts put together from ``experts.{e}.{role}.weight``: (E, out, in), and the keys.

    None if any lacks, or has another shape than its own. gate_proj and up_proj are (out / 2, in) each, down_proj is
    (out, in). A sum of rows would not tell where gate ends and up begins.
    """
    import torch

    if spec.role not in APART or spec.expert is not None:
        return None
    roles = APART[spec.role]
    experts, out, width = spec.shape
    path = key.removesuffix(f".{spec.role}")
    rows = [[f"{path}.{e}.{role}.weight" for role in roles] for e in range(experts)]
    keys = tuple(name for names in rows for name in names)
    if any(name not in tensors or tuple(tensors[name].shape) != (out // len(roles), width) for name in keys):
        return None
    if len({tensors[name].dtype for name in keys}) != 1:
        return None  # put together they would have to be cast, and what lies on disk is judged as it is
    return torch.stack([torch.cat([tensors[name] for name in names]) for names in rows]), keys
