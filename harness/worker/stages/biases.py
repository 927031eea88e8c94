"""Biases that are trained beside a LoRA (PEFT's ``bias="lora_only"``): the wrapped Linears' own, whole and in place.

Nothing stands in for them, so that what they were is gone once they are trained. It is kept when the LoRA is attached.
Their delta is what training has changed of them. A LoRA of a Linear without a bias leaves it without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.worker.stages.peft_names import Target

BIAS = "bias"
"""The parameter of a target that is a Linear's bias."""
SUFFIX = ".base_layer.bias"
"""How the name of one ends, in the model and in a saved adapter."""
BEFORE = "biases-before.safetensors"
"""The file, in the work directory, that keeps what they were."""


@dataclass(frozen=True, kw_only=True)
class Bias:
    """A Linear's bias.

    Attributes:
        parameter: as it is in the model, (out,).
        before: what it was when the LoRA was attached; None where that was not kept.
    """

    parameter: Any
    before: Any

    @property
    def delta(self) -> Any:
        """What training has changed, (out,) float64."""
        return self.parameter.detach().double().cpu() - self.before.double()


def biases_of(layers: Mapping[str, tuple[Target, Any]], work: Path | None = None) -> dict[str, tuple[Target, Bias]]:
    """Return the biases of Linears that have a LoRA: the name in a saved adapter → (target, bias).

    Args:
        layers: key in a saved adapter → (target, layer), as ``attach.lora_layers`` has them.
        work: the work directory, where what they were is kept; None: what they were is not asked for.
    """
    from safetensors.torch import load_file

    before = {} if work is None else load_file(work / BEFORE)
    found: dict[str, tuple[Target, Bias]] = {}
    for key, ((module, parameter), layer) in layers.items():
        bias = None if parameter is not None else getattr(layer.get_base_layer(), "bias", None)
        if bias is not None:
            name = f"{key}{SUFFIX}"
            found[name] = ((module, BIAS), Bias(parameter=bias, before=before.get(name)))
    return found


def keep(biases: Mapping[str, tuple[Target, Bias]], work: Path) -> None:
    """Keep what biases are, before they are trained."""
    from safetensors.torch import save_file

    save_file({name: bias.parameter.detach().clone().cpu() for name, (_, bias) in biases.items()}, work / BEFORE)


def trained_biases(layers: Mapping[str, tuple[Target, Any]], work: Path) -> dict[str, tuple[Target, Bias]]:
    """Return the biases that are trained, as ``biases_of`` has them."""
    return {
        name: (target, bias) for name, (target, bias) in biases_of(layers, work).items() if bias.parameter.requires_grad
    }
