"""Which tensors of a merged directory stand for which of the base, where an engine writes them under other names.

Two rules and no more, both read off what ``save_pretrained`` of transformers 5.5.0 to 5.23.0 does. A *prefix* may be
another one that the family is published with. *Experts* that lie fused on disk may be written one by one. Each is done
to all tensors of a checkpoint or to none: a directory of two prefixes is no form that anything writes. Whether this
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


@dataclass(frozen=True, kw_only=True)
class Names:
    """Where a tensor lies in a form.

    Attributes:
        rows: its keys; for fused experts that lie apart those of each expert.
        rule: how they differ from the base's own, in words; None where they do not.
        apart: whether it has to be put together from them.
    """

    rows: list[list[str]]
    rule: str | None = None
    apart: bool = False


@dataclass(frozen=True, kw_only=True)
class Form:
    """How all tensors of a directory are named.

    Attributes:
        prefix: the prefix in place of the family's other ones; None where each tensor has the base's own.
        apart: whether experts that are fused in the base lie one by one.
    """

    prefix: str | None = None
    apart: bool = False

    def names(self, spec: TensorSpec, prefixes: Sequence[str]) -> Names:
        """Return where a tensor lies.

        Tensors that the model does not load are never written anew, so they have no other names.
        """
        if spec.extra:
            return Names(rows=[[spec.key]])
        key, rules = spec.key, []
        own = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
        if own and self.prefix not in {None, own}:
            key, rules = f"{self.prefix}{key.removeprefix(own)}", [f"{own}* as {self.prefix}*"]
        if not self.apart or spec.role not in APART or spec.expert is not None:
            return Names(rows=[[key]], rule=" and ".join(rules) or None)
        path = key.removesuffix(f".{spec.role}")
        rows = [[f"{path}.{e}.{role}.weight" for role in APART[spec.role]] for e in range(spec.shape[0])]
        return Names(rows=rows, rule=" and ".join([*rules, "fused experts one by one"]), apart=True)


def find(specs: Sequence[TensorSpec], tensors: Mapping[str, Any], prefixes: Sequence[str] = ()) -> dict[str, Found]:
    """Return what stands for each tensor of the base among those of a merged directory: base key → what was found.

    The directory is taken to have the form in which most tensors are there. The base's own comes first where as many
    are, so a second copy stays unexpected.

    Args:
        specs: the tensors of the base.
        tensors: key → tensor of the merged directory.
        prefixes: prefixes that are the same for the family, ``("model.language_model.", "model.")``.
    """
    forms = [Form(prefix=prefix, apart=apart) for prefix in (None, *prefixes) for apart in (False, True)]

    def there(form: Form) -> int:
        return sum(all(key in tensors for row in form.names(spec, prefixes).rows for key in row) for spec in specs)

    form = max(forms, key=there)  # the first of those that are as good
    return {spec.key: _found(spec, form.names(spec, prefixes), tensors) for spec in specs}


def _found(spec: TensorSpec, names: Names, tensors: Mapping[str, Any]) -> Found:
    """Return the tensor of these names, fused experts put together: (E, out, in). Nothing if any lacks or does not fit.

    gate_proj and up_proj are (out / 2, in) each, down_proj is (out, in). A sum of rows would not tell where gate ends
    and up begins.
    """
    import torch

    keys = tuple(key for row in names.rows for key in row)
    if any(key not in tensors for key in keys):
        return Found(tensor=None)
    if not names.apart:
        return Found(tensor=tensors[keys[0]], keys=keys, rule=names.rule)
    _, out, width = spec.shape
    if any(tuple(tensors[key].shape) != (out // len(names.rows[0]), width) for key in keys):
        return Found(tensor=None)
    if len({tensors[key].dtype for key in keys}) != 1:
        return Found(tensor=None)  # put together they would have to be cast, and are judged as they lie on disk
    together = torch.stack([torch.cat([tensors[key] for key in row]) for row in names.rows])
    return Found(tensor=together, keys=keys, rule=names.rule)
