"""What an adapter holds, from its header and configuration, and which of its lora_B are still zero, from its data."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch

from harness.merge.adapter.adapter import ADAPTER_CONFIG, ADAPTER_FILE, Adapter, open_adapter
from harness.merge.adapter.layout import BPacking, Decision, IoLayout
from harness.merge.adapter.packing import split_by_expert
from harness.merge.adapter_tools.shape import AdapterForm, FusedPair, LinearPair, read_form
from harness.merge.base.checkpoint import open_checkpoint
from harness.merge.base.names import KINDS, kind_of, layer_of
from harness.merge.errors import InputRefusedError, LayoutContradictionError, MergeError
from harness.merge.files.any_path import AnyPath
from harness.merge.files.json_file import read_object
from harness.merge.files.safetensors_file import TensorInfo, read_range
from harness.merge.plan.planner import plan_merge
from harness.merge.write.tensors import tensor_of


@dataclass(frozen=True, kw_only=True)
class KindFacts:
    """The adapted modules of one kind: how many, which ranks and scales, in how many layers."""

    modules: int
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    layers: int

    def to_json(self) -> dict[str, object]:
        """Return the facts as JSON-ready values."""
        return {"modules": self.modules, "ranks": list(self.ranks), "scales": list(self.scales), "layers": self.layers}


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """What an adapter holds.

    ``zero`` lists modules whose lora_B is zero throughout (``…experts (expert 3)`` for one expert of a fused one): they
    change nothing. ``whole`` lists tensors that replace the base's, ``tokens`` counts trained tokens by module,
    ``features`` names what else changes the merge (DoRA, biases). ``undecided`` says why the layouts are open, when
    they are. ``fits`` is None when no base was given, else whether it fits, with ``misfit`` saying why it does not.
    """

    by_kind: dict[str, KindFacts]
    experts: str
    num_experts: int | None
    io_layout: Decision | None
    b_packing: Decision | None
    undecided: str | None
    peft_version: str | None
    base_model: str | None
    dtypes: dict[str, int]
    tensors: int
    parameters: int
    zero: tuple[str, ...]
    whole: tuple[str, ...]
    tokens: dict[str, int]
    features: tuple[str, ...]
    notes: tuple[str, ...]
    fits: bool | None = None
    misfit: str | None = None
    covers: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return the facts as JSON-ready values."""
        return {
            "by_kind": {kind: facts.to_json() for kind, facts in self.by_kind.items()},
            "experts": self.experts,
            "num_experts": self.num_experts,
            "io_layout": self.io_layout.to_json() if self.io_layout else None,
            "b_packing": self.b_packing.to_json() if self.b_packing else None,
            "undecided": self.undecided,
            "peft_version": self.peft_version,
            "base_model": self.base_model,
            "dtypes": self.dtypes,
            "tensors": self.tensors,
            "parameters": self.parameters,
            "zero_deltas": list(self.zero),
            "whole_tensors": list(self.whole),
            "trained_tokens": self.tokens,
            "features": list(self.features),
            "notes": list(self.notes),
            "fits": self.fits,
            "misfit": self.misfit,
            "covers": self.covers,
        }


def _by_kind(form: AdapterForm) -> dict[str, KindFacts]:
    items: list[FusedPair | LinearPair] = [*form.fused, *form.linears]
    found: dict[str, KindFacts] = {}
    for kind in KINDS:
        members = [item for item in items if kind_of(item.pair.module) == kind]
        if members:
            found[kind] = KindFacts(
                modules=len(members),
                ranks=tuple(sorted({item.rank for item in members})),
                scales=tuple(sorted({form.scaling(item) for item in members})),
                layers=len({layer_of(item.pair.module) for item in members}),
            )
    return found


def _zeros(adapter: Adapter, form: AdapterForm | None) -> list[str]:
    """Return what has a zero lora_B, or lora_A: both leave a delta of zero."""
    fused = {item.pair.module: item for item in form.fused} if form else {}
    packing: BPacking = form.b_packing.value if form and form.b_packing else "rank_major"  # type: ignore[assignment]  # one of the two
    found: list[str] = []
    descriptor = os.open(adapter.file.path, os.O_RDONLY | os.O_CLOEXEC)
    try:

        def read(info: TensorInfo) -> torch.Tensor:
            return tensor_of(read_range(descriptor, info.start, info.stop, what=ADAPTER_FILE), info.dtype, info.shape)

        for pair in adapter.pairs:
            if pair.magnitude is not None or pair.bias is not None:
                continue  # they change the weight or the layer's bias, whatever the product is
            item = fused.get(pair.module)
            lora_a, lora_b = read(pair.lora_A), read(pair.lora_B)
            count, rank = (item.num_experts, item.rank) if item else (1, pair.columns)
            factors = split_by_expert(lora_a, lora_b, num_experts=count, rank=rank, packing=packing)
            silent = [
                expert
                for expert in range(factors[0].shape[0])
                if not (bool(factors[0][expert].any()) and bool(factors[1][expert].any()))
            ]
            if len(silent) == factors[0].shape[0]:
                found.append(item.name if item else pair.module)
            elif item is not None:
                found += [f"{item.name} (expert {expert})" for expert in silent]
    finally:
        os.close(descriptor)
    return found


def _told(error: MergeError) -> str:
    """Return what an error says, with what to do about it, as one line."""
    contradicted = "it contradicts itself: " if isinstance(error, LayoutContradictionError) else ""
    return " ".join(filter(None, (contradicted + error.message, error.remedy)))


def inspect_adapter(
    adapter: AnyPath,
    *,
    base: AnyPath | None = None,
    io_layout: IoLayout | None = None,
    b_packing: BPacking | None = None,
) -> AdapterFacts:
    """Return what an adapter holds.

    Args:
        adapter: directory of a PEFT LoRA adapter.
        base: a checkpoint to try it on; its shapes settle what the adapter's own leave open.
        io_layout: settles the io layout where nothing else does.
        b_packing: overrides how lora_B is packed.

    Raises:
        MergeError: the adapter or the base cannot be read, or the adapter uses a feature that is not supported.
    """
    found = open_adapter(Path(adapter))
    undecided: str | None = None
    form: AdapterForm | None = None
    try:
        form = read_form(found, io_layout=io_layout, b_packing=b_packing)
    except InputRefusedError as error:
        undecided = _told(error)
    layout, packing = (form.io_layout, form.b_packing) if form else (None, None)
    fits, misfit, covers, notes = None, None, Counter[str](), found.config.notes
    if base is not None:
        open_checkpoint(Path(base))  # what is no checkpoint is an error, and not one that the adapter does not fit
        try:
            plan = plan_merge(base, adapter, io_layout=io_layout, b_packing=b_packing)
        except MergeError as error:
            fits, misfit = False, _told(error)
        else:
            fits, layout, packing, notes = True, plan.io_layout, plan.b_packing, plan.notes
            covers = Counter(row.kind for row in plan.rows)
    dtypes: dict[str, int] = defaultdict(int)
    for info in found.file.tensors.values():
        dtypes[info.dtype] += 1
    return AdapterFacts(
        by_kind=_by_kind(form) if form else {},
        experts=form.experts if form else "undecided",
        num_experts=form.fused[0].num_experts if form and form.fused else None,
        io_layout=layout,
        b_packing=packing,
        undecided=undecided,
        peft_version=found.config.peft_version,
        base_model=_base_model(found),
        dtypes=dict(dtypes),
        tensors=len(found.file.tensors),
        parameters=sum(prod(info.shape) for info in found.file.tensors.values()),
        zero=tuple(_zeros(found, form)),
        whole=tuple(tensor.path for tensor in found.full),
        tokens={module: info.shape[0] for module, info in found.tokens.items()},
        features=tuple(name for name in ("use_dora", "lora_bias", "use_rslora") if getattr(found.config, name))
        + (() if found.config.bias == "none" else (f"bias = {found.config.bias}",)),
        notes=notes,
        fits=fits,
        misfit=misfit,
        covers=dict(covers),
    )


def _base_model(adapter: Adapter) -> str | None:
    name = read_object(adapter.root / ADAPTER_CONFIG).get("base_model_name_or_path")
    return name if isinstance(name, str) else None
