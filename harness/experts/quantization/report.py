"""What of a model is quantised and what is not, counted by kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from harness.experts.fused import is_fused_experts
from harness.experts.quantization.tensor import QuantizedExperts

Kind = Literal["experts", "linears", "other", "adapters"]
KINDS: tuple[Kind, ...] = ("experts", "linears", "other", "adapters")


@dataclass(frozen=True, kw_only=True)
class Count:
    """Parameters of one kind.

    ``quantized`` and ``plain`` count weights: numbers of the logical shape. ``stored`` counts bytes.
    """

    quantized: int = 0
    plain: int = 0
    stored: int = 0

    @property
    def bytes_in_16_bits(self) -> int:
        """What as many weights take in bfloat16."""
        return 2 * (self.quantized + self.plain)


def quantization_report(model: torch.nn.Module) -> dict[Kind, Count]:
    """Count the parameters of ``model`` by kind.

    ``experts``: fused experts, or Linears within ``experts``. ``linears``: other Linears. ``adapters``: LoRAs.
    ``other``: the rest.
    """
    found = {kind: [0, 0, 0] for kind in KINDS}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for leaf, weights in module.named_parameters(recurse=False):
            if id(weights) in seen:
                continue
            seen.add(id(weights))
            quantized, count, stored = _measure(weights)
            row = found[_kind(path, module, leaf)]
            row[0 if quantized else 1] += count
            row[2] += stored
    return {kind: Count(quantized=row[0], plain=row[1], stored=row[2]) for kind, row in found.items()}


def is_quantized(weights: torch.Tensor) -> bool:
    """Say whether a parameter holds codes: ours, or those of one of bitsandbytes' Linears."""
    return _measure(weights)[0]


def _kind(path: str, module: torch.nn.Module, leaf: str) -> Kind:
    if ".lora_" in path:
        return "adapters"
    if is_fused_experts(module, leaf) or (leaf == "weight" and ".experts." in f".{path}."):
        return "experts"
    return "linears" if isinstance(module, torch.nn.Linear) else "other"


def _measure(weights: Any) -> tuple[bool, int, int]:
    """Return whether a parameter is quantised, how many weights it means, and its bytes."""
    if isinstance(weights, QuantizedExperts):
        return True, weights.numel(), weights.stored_bytes
    stored = weights.numel() * weights.element_size()
    state = getattr(weights, "quant_state", None)
    if state is not None:  # bitsandbytes' Params4bit
        scales = state.absmax.numel() * state.absmax.element_size()
        return True, state.shape.numel(), stored + scales
    if weights.dtype == torch.int8:  # its Int8Params, with a scale a row
        return True, weights.numel(), stored + 4 * weights.shape[0]
    return False, weights.numel(), stored
