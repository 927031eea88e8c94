"""LoRA extraction: a pair of small matrices for each expert, from a LoRA on fused experts.

They are ready for grouped matrix products. PEFT keeps the LoRA of a fused parameter as two flat Linears. It multiplies
them out to a delta as large as the parameter. Kept apart, a token of expert e costs
``x @ first[e] @ second[e] * scaling``, and nothing is multiplied out.

Which side of the parameter lora_A faces, and how lora_B is packed, is decided where merges decide it:
``harness.merge.adapter.layout`` and ``harness.merge.adapter.packing``. They decide it from what PEFT itself recorded
in the live wrapper, ``peft.tuners.lora.layer.ParamWrapper`` (0.18.0 to 0.21.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from harness.experts.errors import UnrecognisedLoraError
from harness.merge.adapter.layout import IoLayout, decide_io_layout, parameter_readings
from harness.merge.adapter.packing import split_lora_a, split_lora_b
from harness.merge.errors import MergeError

TRANSPOSED_WITHOUT_SAYING = frozenset({"Llama4TextExperts"})
"""Experts modules that store (num_experts, in, out) without ``is_transposed``, the attribute that says so."""
ATTRIBUTES = ("parameter_name", "get_param", "get_base_layer", "num_experts", "lora_A", "lora_B", "scaling", "r")
FUSED = 3
"""Dimensions of a fused experts parameter."""


@dataclass(frozen=True, kw_only=True)
class ExpertLora:
    """A LoRA on fused experts, factored: expert e adds ``x @ first[e] @ second[e] * scaling`` to its output.

    ``first``: (num_experts, in, rank). ``second``: (num_experts, rank, out). Both have the dtype and the device of the
    LoRA's weights, and are part of their autograd graph. ``io_layout``: which side lora_A faces, ``standard`` (the
    input) or ``swapped``.
    """

    first: torch.Tensor
    second: torch.Tensor
    scaling: float
    num_experts: int
    io_layout: IoLayout


@dataclass(frozen=True, kw_only=True)
class RecognisedLora:
    """PEFT's two flat weights, and how they are read; ``extract_expert_lora`` factors them.

    ``lora_a``: (num_experts·rank, a). ``lora_b``: (b, num_experts·rank).
    """

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    rank: int
    scaling: float
    num_experts: int
    io_layout: IoLayout

    @property
    def facing(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight that faces the input, and the one that faces the output."""
        return (self.lora_a, self.lora_b) if self.io_layout == "standard" else (self.lora_b, self.lora_a)

    def inward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight that faces the input, or one like it, as (num_experts, rank, in)."""
        return self._split_a(weight) if self.io_layout == "standard" else self._split_b(weight).mT

    def outward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight that faces the output, or one like it, as (num_experts, out, rank)."""
        return self._split_b(weight) if self.io_layout == "standard" else self._split_a(weight).mT

    def _split_a(self, lora_a: torch.Tensor) -> torch.Tensor:
        return split_lora_a(lora_a, num_experts=self.num_experts, rank=self.rank)

    def _split_b(self, lora_b: torch.Tensor) -> torch.Tensor:
        return split_lora_b(lora_b, num_experts=self.num_experts, rank=self.rank, packing="rank_major")


def extract_expert_lora(wrapper: Any, adapter: str | None = None, *, transposed: bool | None = None) -> ExpertLora:
    """Return the LoRA that a PEFT ``ParamWrapper`` holds for a fused experts parameter.

    Args:
        wrapper: the wrapper of one parameter. The parameter is (num_experts, out, in), or (num_experts, in, out) where
            the experts module is transposed.
        adapter: which adapter; the only active one by default.
        transposed: whether the parameter is (num_experts, in, out). By default the module's ``is_transposed`` decides,
            or ``TRANSPOSED_WITHOUT_SAYING``.

    Raises:
        UnrecognisedLoraError: something about the wrapper, the adapter or the shapes is not understood. Examples are a
            wrapper of another kind, several active adapters, a bias, dropout, a LoRA variant, and shapes that fit no
            reading.
    """
    found = recognise_lora(wrapper, adapter, transposed=transposed)
    inward, outward = found.facing
    return ExpertLora(
        first=found.inward(inward).mT,
        second=found.outward(outward).mT,
        scaling=found.scaling,
        num_experts=found.num_experts,
        io_layout=found.io_layout,
    )


def recognise_lora(wrapper: Any, adapter: str | None = None, *, transposed: bool | None = None) -> RecognisedLora:
    """Return how the LoRA of a ``ParamWrapper`` is to be read, without reading it; see ``extract_expert_lora``.

    Raises:
        UnrecognisedLoraError: see there.
    """
    missing = [name for name in ATTRIBUTES if not hasattr(wrapper, name)]
    if missing:
        raise UnrecognisedLoraError(
            f"{type(wrapper).__name__} is no PEFT ParamWrapper: it has no {', '.join(missing)}."
        )
    name = _adapter(wrapper, adapter)
    parameter = wrapper.get_param()
    if parameter.ndim != FUSED or parameter.shape[0] != wrapper.num_experts:
        raise UnrecognisedLoraError(
            f"{wrapper.parameter_name} has shape {tuple(parameter.shape)}, which is not (num_experts, …) for "
            f"{wrapper.num_experts} experts."
        )
    lora_a, lora_b = wrapper.lora_A[name], wrapper.lora_B[name]
    _check_plain(wrapper, name, lora_a, lora_b)
    count, rank = wrapper.num_experts, wrapper.r[name]
    if lora_a.weight.shape[0] != count * rank or lora_b.weight.shape[1] != count * rank:
        raise UnrecognisedLoraError(
            f"lora_A {tuple(lora_a.weight.shape)} and lora_B {tuple(lora_b.weight.shape)} are not those of {count} "
            f"experts of rank {rank}."
        )
    turned = _transposed(wrapper) if transposed is None else transposed
    layout = _io_layout(wrapper, lora_a.weight, lora_b.weight, turned)
    return RecognisedLora(
        lora_a=lora_a.weight,
        lora_b=lora_b.weight,
        rank=rank,
        scaling=float(wrapper.scaling[name]),
        num_experts=count,
        io_layout=layout,
    )


def _adapter(wrapper: Any, adapter: str | None) -> str:
    """Return the adapter that is meant, which the wrapper must hold."""
    if adapter is None:
        active = [name for name in wrapper.active_adapters if name in wrapper.lora_A]
        if len(active) != 1:
            raise UnrecognisedLoraError(
                f"{len(active)} adapters are active on {wrapper.parameter_name}; name the one to extract."
            )
        return str(active[0])
    if adapter not in wrapper.lora_A:
        raise UnrecognisedLoraError(
            f"{wrapper.parameter_name} has no adapter {adapter!r}, but {', '.join(wrapper.lora_A)}."
        )
    return adapter


def _check_plain(wrapper: Any, name: str, lora_a: Any, lora_b: Any) -> None:
    """Refuse what the two factors and a scale do not say."""
    if lora_a.bias is not None or lora_b.bias is not None:
        raise UnrecognisedLoraError(f"the LoRA of {wrapper.parameter_name} has a bias.")
    if not isinstance(wrapper.lora_dropout[name], torch.nn.Identity):
        raise UnrecognisedLoraError(
            f"the LoRA of {wrapper.parameter_name} has dropout, which cannot be kept apart from its factors."
        )
    if getattr(wrapper, "use_dora", {}).get(name) or name in getattr(wrapper, "lora_variant", {}):
        raise UnrecognisedLoraError(f"the LoRA of {wrapper.parameter_name} is a variant (DoRA, say), not plain.")
    if name in wrapper.merged_adapters:
        raise UnrecognisedLoraError(f"the adapter {name!r} is merged into {wrapper.parameter_name}; unmerge it first.")


def _transposed(wrapper: Any) -> bool:
    """Return whether the parameter is stored (num_experts, in, out)."""
    experts = wrapper.get_base_layer()
    return bool(getattr(experts, "is_transposed", type(experts).__name__ in TRANSPOSED_WITHOUT_SAYING))


def _io_layout(wrapper: Any, lora_a: torch.Tensor, lora_b: torch.Tensor, transposed: bool) -> IoLayout:
    """Decide which side of the parameter lora_A faces: by its shape, or where that is square by what PEFT does.

    PEFT's ``get_delta_weight`` multiplies B A in the coordinates of the parameter where ``_did_swap_in_out_features``
    is set (0.19.1 on) or there is one expert. Otherwise it takes the transpose.
    """
    _, rows, columns = wrapper.get_param().shape
    outward, inward = (columns, rows) if transposed else (rows, columns)
    readings = parameter_readings((lora_a.shape[1], lora_b.shape[0]), {wrapper.parameter_name: (outward, inward)})
    as_it_is = wrapper.num_experts == 1 or getattr(wrapper, "_did_swap_in_out_features", False)
    recorded: IoLayout = "standard" if as_it_is != transposed else "swapped"
    possible = frozenset(layout for _, layout in readings)
    if not possible:
        raise UnrecognisedLoraError(
            f"lora_A {tuple(lora_a.shape)} and lora_B {tuple(lora_b.shape)} fit {wrapper.parameter_name} "
            f"{tuple(wrapper.get_param().shape)} in no way."
        )
    try:
        decision = decide_io_layout(
            [(wrapper.parameter_name, possible)], peft_version="in memory", recorded=recorded, flag=None
        )
    except MergeError as error:
        raise UnrecognisedLoraError(error.message) from error
    return "standard" if decision.value == "standard" else "swapped"
