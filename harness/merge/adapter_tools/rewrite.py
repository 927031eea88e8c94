"""The tensors of a converted adapter: which there will be, and how each is made from the old ones.

Planned from the header alone. Outputs come in groups: a fused pair, or the Linears of one expert parameter. A group is
read once, and only one is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import torch

from harness.merge.adapter.adapter import LoraPair
from harness.merge.adapter.keys import PREFIX
from harness.merge.adapter.layout import BPacking, IoLayout
from harness.merge.adapter.packing import Factors, pack, split_by_expert, turn
from harness.merge.adapter_tools.shape import DOWN, GATE_UP, AdapterForm, FusedPair, LinearPair, experts_of
from harness.merge.base.names import PARTS
from harness.merge.errors import SHOWN, UnsupportedAdapterError
from harness.merge.files.safetensors_file import TensorInfo

Read = Callable[[TensorInfo], torch.Tensor]
Made = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Outputs that are made together: name to (dtype by the format's name, shape), and what makes them."""

    outputs: Mapping[str, tuple[str, tuple[int, ...]]]
    make: Callable[[Read], Made]


@dataclass(kw_only=True)
class Rewrite:
    """What a conversion writes.

    Attributes:
        groups: the tensors.
        wanted: rank and alpha by new name.
        fused_names: names of fused parameters among the new targets.
        expert_linears: names of single experts' Linears among them.
    """

    groups: list[Group] = field(default_factory=list)
    wanted: dict[str, tuple[int, float]] = field(default_factory=dict)
    fused_names: list[str] = field(default_factory=list)
    expert_linears: list[str] = field(default_factory=list)


def keys_of(module: str) -> tuple[str, str]:
    """Return the keys of a module's lora_A and lora_B."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _outputs(
    module: str, dtypes: tuple[str, str], a: tuple[int, int], b: tuple[int, int]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    key_a, key_b = keys_of(module)
    return {key_a: (dtypes[0], a), key_b: (dtypes[1], b)}


def copied(key: str, info: TensorInfo) -> Group:
    """Return the group of a tensor that stays as it is."""
    return Group(outputs={key: (info.dtype, info.shape)}, make=lambda read: {key: read(info)})


def _dtypes(pair: LoraPair) -> tuple[str, str]:
    return pair.lora_A.dtype, pair.lora_B.dtype


def _factors(read: Read, item: FusedPair, layout: IoLayout, packing: BPacking, wanted: IoLayout) -> Factors:
    lora_a, lora_b = read(item.pair.lora_A), read(item.pair.lora_B)
    factors = split_by_expert(lora_a, lora_b, num_experts=item.num_experts, rank=item.rank, packing=packing)
    return factors if layout == wanted else turn(factors)


def repacked(item: FusedPair, old: tuple[IoLayout, BPacking], new: tuple[IoLayout, BPacking]) -> Group:
    """Return the group of a fused pair in another io layout and packing.

    Raises:
        UnsupportedAdapterError: lora_A and lora_B have different dtypes, which turning would exchange.
    """
    if old[0] == new[0]:
        features, dtypes = item.pair.features, _dtypes(item.pair)
    else:
        features, dtypes = item.pair.features[::-1], (item.pair.lora_B.dtype, item.pair.lora_A.dtype)
    columns = item.pair.columns
    key_a, key_b = keys_of(item.pair.module)

    def make(read: Read) -> Made:
        lora_a, lora_b = pack(_factors(read, item, *old, new[0]), new[1])
        return {key_a: lora_a, key_b: lora_b}

    outputs = _outputs(item.pair.module, dtypes, (columns, features[0]), (features[1], columns))
    return Group(outputs=outputs, make=make)


def unfused(item: FusedPair, layout: IoLayout, packing: BPacking) -> tuple[Group, list[str]]:
    """Return the group that gives every expert Linears of its own, and their modules.

    gate_proj and up_proj get the same lora_A and one half of lora_B's rows each: the same products.
    """
    parts = PARTS[item.parameter]
    inner, outer = item.pair.features if layout == "standard" else item.pair.features[::-1]
    dtypes = _dtypes(item.pair) if layout == "standard" else (item.pair.lora_B.dtype, item.pair.lora_A.dtype)
    if outer % len(parts):
        raise UnsupportedAdapterError(f"{item.pair.module}: {outer} output features cannot be {' and '.join(parts)}.")
    rows = outer // len(parts)
    modules = [f"{item.path}.{expert}.{part}" for expert in range(item.num_experts) for part in parts]
    outputs: dict[str, tuple[str, tuple[int, ...]]] = {}
    for module in modules:
        outputs |= _outputs(module, dtypes, (item.rank, inner), (rows, item.rank))

    def make(read: Read) -> Made:
        lora_a, lora_b = _factors(read, item, layout, packing, "standard")
        made: dict[str, torch.Tensor] = {}
        for expert in range(item.num_experts):
            for number, part in enumerate(parts):
                key_a, key_b = keys_of(f"{item.path}.{expert}.{part}")
                made[key_a] = lora_a[expert].contiguous()
                made[key_b] = lora_b[expert, number * rows : (number + 1) * rows].contiguous()
        return made

    return Group(outputs=outputs, make=make), modules


@dataclass(frozen=True, kw_only=True)
class _Parameter:
    """The Linears that become one fused parameter: leaf to expert to pair.

    ``shared``: gate and up have the same lora_A everywhere.
    """

    path: str
    parameter: str
    leaves: Mapping[str, Mapping[int, LinearPair]]
    count: int
    shared: bool

    @property
    def first(self) -> LinearPair:
        """Any of the Linears; they are alike."""
        return next(iter(self.leaves.values()))[0]

    @property
    def rank(self) -> int:
        """The rank of the fused parameter's LoRA."""
        return self.first.rank * (1 if self.shared else len(self.leaves))


def _collect(form: AdapterForm, read: Read) -> list[_Parameter]:
    """Return the parameters that the adapter's expert Linears make up.

    Raises:
        UnsupportedAdapterError: experts are missing or differ in rank, scale, shape or dtype: a fused pair has one of
            each.
    """
    found: list[_Parameter] = []
    for path, leaves in experts_of(form):
        unknown = leaves.keys() - {leaf for parts in PARTS.values() for leaf in parts}
        if unknown:
            raise UnsupportedAdapterError(
                f"{path}: {sorted(unknown)} are no gate_proj, up_proj or down_proj; they cannot be fused."
            )
        for parameter, parts in PARTS.items():
            present = {leaf: leaves[leaf] for leaf in parts if leaf in leaves}
            if present:
                found.append(_parameter(path, parameter, present, read))
    # One rank for all layers: either every gate shares its lora_A with its up, or none is taken to.
    shared = all(item.shared for item in found if item.parameter == GATE_UP)
    return [
        _Parameter(path=item.path, parameter=item.parameter, leaves=item.leaves, count=item.count,
                   shared=shared if item.parameter == GATE_UP else True)
        for item in found
    ]  # fmt: skip


def _parameter(path: str, parameter: str, leaves: Mapping[str, Mapping[int, LinearPair]], read: Read) -> _Parameter:
    count = max(max(by_expert) for by_expert in leaves.values()) + 1
    for leaf, by_expert in leaves.items():
        # Counted from what is there: a key that names expert 999999999 must not make us list the others.
        if len(by_expert) != count:
            missing = list(islice((expert for expert in range(count) if expert not in by_expert), SHOWN))
            raise UnsupportedAdapterError(
                f"{path}: experts {missing} have no LoRA on {leaf}; a fused LoRA covers all experts."
            )
    pairs = [pair for by_expert in leaves.values() for pair in by_expert.values()]
    kinds = {(one.rank, one.alpha, one.pair.features, _dtypes(one.pair)) for one in pairs}
    if len(kinds) > 1:
        raise UnsupportedAdapterError(
            f"{path}: the LoRA of its experts differ in rank, alpha, shape or dtype; a fused {parameter} has one of"
            " each."
        )
    shared = all(
        torch.equal(read(first.pair.lora_A), read(other[expert].pair.lora_A))
        for other in list(leaves.values())[1:]
        for expert, first in next(iter(leaves.values())).items()
    )
    return _Parameter(path=path, parameter=parameter, leaves=leaves, count=count, shared=shared)


def _fuse(item: _Parameter, module: str, new: tuple[IoLayout, BPacking]) -> Group:
    """Return the group that makes one fused pair.

    What gate_proj and up_proj do not share becomes a block-diagonal lora_B.
    """
    parts = PARTS[item.parameter]
    inner, rows = item.first.pair.features
    outer, single = rows * len(parts), item.first.rank
    columns = item.rank * item.count
    dtypes = _dtypes(item.first.pair)
    features = (inner, outer)
    if new[0] == "swapped":
        features, dtypes = (outer, inner), dtypes[::-1]
    key_a, key_b = keys_of(module)

    def make(read: Read) -> Made:
        each_a, each_b = [], []
        for expert in range(item.count):
            found = {leaf: by_expert[expert].pair for leaf, by_expert in item.leaves.items()}
            ranks = [read(pair.lora_A) for pair in found.values()]
            each_a.append(ranks[0] if item.shared else torch.cat(ranks))
            whole = torch.zeros(outer, item.rank, dtype=read(item.first.pair.lora_B).dtype)
            for block, (leaf, pair) in enumerate(found.items()):
                top, left = parts.index(leaf) * rows, 0 if item.shared else block * single
                whole[top : top + rows, left : left + single] = read(pair.lora_B)
            each_b.append(whole)
        factors = torch.stack(each_a), torch.stack(each_b)
        lora_a, lora_b = pack(factors if new[0] == "standard" else turn(factors), new[1])
        return {key_a: lora_a, key_b: lora_b}

    return Group(outputs=_outputs(module, dtypes, (columns, features[0]), (features[1], columns)), make=make)


def plan_fused(form: AdapterForm, new: tuple[IoLayout, BPacking], read: Read) -> Rewrite:
    """Return the rewrite that fuses the experts' Linears."""
    rewrite = Rewrite()
    parameters = _collect(form, read)
    both = {item.path for item in parameters if item.parameter == GATE_UP} & {
        item.path for item in parameters if item.parameter == DOWN
    }
    rslora = form.adapter.config.use_rslora
    for item in parameters:
        # PEFT wraps gate_up_proj first, so its keys lie inside; a single one is not nested.
        inner = item.parameter == GATE_UP and item.path in both
        rewrite.groups.append(_fuse(item, f"{item.path}.base_layer" if inner else item.path, new))
        name = f"{item.path}.{item.parameter}"
        rewrite.wanted[name] = (item.rank, _alpha(item, rslora=rslora))
        rewrite.fused_names.append(name)
    return rewrite


def _alpha(item: _Parameter, *, rslora: bool) -> float:
    """Return the alpha that gives the fused pair the scale of its Linears."""
    factor = item.rank // item.first.rank
    if factor == 1:
        return item.first.alpha
    if rslora:
        raise UnsupportedAdapterError(
            "gate_proj and up_proj have a lora_A each, so fusing them doubles the rank, and with use_rslora no alpha"
            " gives exactly the same"
            " scale.",
        )
    return item.first.alpha * factor


def plan_unfused(form: AdapterForm, old: tuple[IoLayout, BPacking]) -> Rewrite:
    """Return the rewrite that gives each expert Linears of its own."""
    rewrite = Rewrite()
    for item in form.fused:
        group, modules = unfused(item, *old)
        rewrite.groups.append(group)
        rewrite.wanted |= dict.fromkeys(modules, (item.rank, item.alpha))
        rewrite.expert_linears += modules
    return rewrite


def plan_repacked(form: AdapterForm, old: tuple[IoLayout, BPacking], new: tuple[IoLayout, BPacking]) -> Rewrite:
    """Return the rewrite that changes io layout and packing only."""
    rewrite = Rewrite()
    for item in form.fused:
        rewrite.groups.append(repacked(item, old, new))
        rewrite.wanted[item.name] = (item.rank, item.alpha)
        rewrite.fused_names.append(item.name)
    return rewrite
