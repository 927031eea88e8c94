"""The form of an adapter's expert LoRA, without the model: which parameter each fused pair is of, and which way round.

With both parameters of a module adapted, their shapes tell. Of gate_up_proj (2I, H) and down_proj (H, I), one's input
is the other's output and one side is twice the other, and only one assignment fits. With a single one,
``target_parameters`` names it and the recorded release of PEFT says the layout. The number of experts is the flat
dimension divided by the configured rank.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

from harness.merge.adapter.adapter import Adapter, LoraPair
from harness.merge.adapter.layout import (
    IO_LAYOUTS,
    BPacking,
    Decision,
    IoLayout,
    decide_b_packing,
    decide_io_layout,
    layout_of_peft,
)
from harness.merge.adapter.patterns import names_suffix
from harness.merge.base.expert_parameters import MAX_EXPERTS
from harness.merge.base.names import PARTS, expert_module, fused_module
from harness.merge.errors import MalformedAdapterError

ExpertForm = Literal["fused", "per-expert", "mixed", "none"]
GATE_UP, DOWN = "gate_up_proj", "down_proj"


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedPair:
    """A LoRA on a fused expert parameter: ``path`` is the experts module, ``parameter`` gate_up_proj or down_proj."""

    pair: LoraPair
    path: str
    parameter: str
    rank: int
    alpha: float
    num_experts: int

    @property
    def name(self) -> str:
        """What PEFT's patterns see."""
        return f"{self.path}.{self.parameter}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearPair:
    """A LoRA on a Linear; ``expert`` is (experts module, expert, leaf) where it is one of the routed experts'."""

    pair: LoraPair
    name: str
    rank: int
    alpha: float
    expert: tuple[str, int, str] | None


@dataclass(frozen=True, kw_only=True)
class AdapterForm:
    """Every pair of an adapter, sorted out. ``io_layout`` and ``b_packing`` are None where nothing is fused."""

    adapter: Adapter
    fused: tuple[FusedPair, ...]
    linears: tuple[LinearPair, ...]
    io_layout: Decision | None
    b_packing: Decision | None

    @property
    def experts(self) -> ExpertForm:
        """How the routed experts' LoRA is stored."""
        single = any(pair.expert is not None for pair in self.linears)
        if self.fused:
            return "mixed" if single else "fused"
        return "per-expert" if single else "none"

    def scaling(self, pair: FusedPair | LinearPair) -> float:
        """Return what lora_B @ lora_A is multiplied by."""
        return scaling(pair.rank, pair.alpha, rslora=self.adapter.config.use_rslora)


def scaling(rank: int, alpha: float, *, rslora: bool) -> float:
    """Return PEFT's factor on lora_B @ lora_A."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def _fits(gate_up: LoraPair, down: LoraPair, layout: IoLayout) -> bool:
    """Return whether two pairs can be gate_up_proj and down_proj of one module in a layout."""
    (up_in, up_out), (down_in, down_out) = gate_up.features, down.features
    if layout == "swapped":
        up_in, up_out, down_in, down_out = up_out, up_in, down_out, down_in
    return up_in == down_out and up_out == 2 * down_in


def _assign(
    path: str, pairs: tuple[LoraPair, ...], adapter: Adapter
) -> tuple[dict[str, LoraPair], frozenset[IoLayout]]:
    """Return which parameter each pair of a module is, and the layouts that its shapes allow.

    Raises:
        MalformedAdapterError: they cannot be told apart, or fit nothing.
    """
    if len(pairs) == 1:
        targeted = [name for name in PARTS if names_suffix(f"{path}.{name}", adapter.config.target_parameters)]
        if len(targeted) != 1:
            raise MalformedAdapterError(
                f"{pairs[0].module} has one lora pair, and target_parameters names {len(targeted)} parameters of"
                f" {path}.",
                "Give --base, whose shapes tell which parameter it is.",
            )
        return {targeted[0]: pairs[0]}, frozenset(IO_LAYOUTS)
    if len(pairs) != len(PARTS):
        raise MalformedAdapterError(f"{path} has {len(pairs)} lora pairs; gate_up_proj and down_proj are two.")
    fitting = [
        (first, second, layout)
        for (first, second), layout in product([pairs, pairs[::-1]], IO_LAYOUTS)
        if _fits(first, second, layout)
    ]
    if not fitting:
        raise MalformedAdapterError(
            f"{pairs[0].module} ({pairs[0].shapes}) and {pairs[1].module} ({pairs[1].shapes}) cannot be gate_up_proj"
            " and down_proj of"
            " one module in any layout."
        )
    if len({(first.module, second.module) for first, second, _ in fitting}) > 1:
        raise MalformedAdapterError(
            f"the shapes of {path} do not tell which pair is gate_up_proj and which is down_proj."
        )
    first, second, _ = fitting[0]
    return {GATE_UP: first, DOWN: second}, frozenset(layout for _, _, layout in fitting)


def _rank(adapter: Adapter, name: str) -> tuple[int, float]:
    config = adapter.config
    return (
        int(config.rank_pattern.value(name, config.r)),
        config.alpha_pattern.value(name, config.lora_alpha),
    )


def _fused(adapter: Adapter, path: str, parameter: str, pair: LoraPair) -> FusedPair:
    name = f"{path}.{parameter}"
    rank, alpha = _rank(adapter, name)
    if rank < 1 or pair.columns % rank:
        raise MalformedAdapterError(
            f"{pair.module}: {pair.shapes} is not a number of experts times the configured rank {rank}."
        )
    if pair.columns // rank > MAX_EXPERTS:
        raise MalformedAdapterError(f"{pair.module}: {pair.shapes} would be {pair.columns // rank} experts.")
    return FusedPair(
        pair=pair, path=path, parameter=parameter, rank=rank, alpha=alpha, num_experts=pair.columns // rank
    )


def _linear(adapter: Adapter, pair: LoraPair) -> LinearPair:
    as_parameter = f"{pair.module}.weight"
    name = as_parameter if names_suffix(as_parameter, adapter.config.target_parameters) else pair.module
    rank, alpha = _rank(adapter, name)
    if rank != pair.columns:
        raise MalformedAdapterError(f"{pair.module}: {pair.shapes} has another rank than the configured {rank}.")
    return LinearPair(pair=pair, name=name, rank=rank, alpha=alpha, expert=expert_module(pair.module))


def read_form(adapter: Adapter, *, io_layout: IoLayout | None = None, b_packing: BPacking | None = None) -> AdapterForm:
    """Return an adapter's pairs, sorted out, and its layouts, decided as for a merge.

    Raises:
        InputRefusedError: its shapes and configuration do not fit together, or leave the io layout open.
    """
    modules: dict[str, list[LoraPair]] = defaultdict(list)
    linears: list[LinearPair] = []
    for pair in adapter.pairs:
        if (path := fused_module(pair.module)) is not None:
            modules[path].append(pair)
        else:
            linears.append(_linear(adapter, pair))
    fused: list[FusedPair] = []
    possible: list[tuple[str, frozenset[IoLayout]]] = []
    for path, pairs in modules.items():
        assigned, layouts = _assign(path, tuple(pairs), adapter)
        fused += [_fused(adapter, path, parameter, pair) for parameter, pair in assigned.items()]
        possible.append((path, layouts))
    if len({pair.num_experts for pair in fused}) > 1:
        raise MalformedAdapterError("the fused pairs of the adapter have different numbers of experts.")
    layout: Decision | None = None
    packing: Decision | None = None
    if possible:
        version = adapter.config.peft_version
        # Without the model, its family is unknown: the version is read as for the families that store (num_experts,
        # out, in).
        layout = decide_io_layout(possible, peft_version=version, recorded=layout_of_peft(version), flag=io_layout)
        packing = decide_b_packing(adapter.config.lora_B_layout, b_packing)
    return AdapterForm(adapter=adapter, fused=tuple(fused), linears=tuple(linears), io_layout=layout, b_packing=packing)


def experts_of(form: AdapterForm) -> Iterator[tuple[str, Mapping[str, Mapping[int, LinearPair]]]]:
    """Yield (experts module, its Linears by leaf and expert) of the experts that are stored one by one."""
    found: dict[str, dict[str, dict[int, LinearPair]]] = defaultdict(lambda: defaultdict(dict))
    for pair in form.linears:
        if pair.expert is not None:
            path, expert, leaf = pair.expert
            found[path][leaf][expert] = pair
    yield from found.items()
