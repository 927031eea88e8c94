"""Which parameters of a model lie in which tensors on disk, asked of ``save_pretrained`` itself.

Every parameter is filled with a number of its own, those of experts with another for each expert, and the model is
saved. What is read back says which parameters, and which expert, each tensor on disk is made of, whatever a release
renames, splits, joins or transposes on the way. A tensor that holds other numbers than those was computed: it is of
no parameter alone.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP = 1 / 4096
"""What the numbers of two experts differ by. Exact in float64, and more than there are experts in a small model."""
BUFFER = -1.0
"""What buffers are filled with, which no parameter is."""


@dataclass(frozen=True, kw_only=True)
class OnDisk:
    """One tensor on disk.

    Attributes:
        shape: its shape.
        parameters: names of the parameters in memory that it is made of; none where it was computed from several or is
            a buffer.
        expert: the one expert of a parameter of experts that it is made of; None where it is of all, or of none.
        floating: whether it holds real numbers.
    """

    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    expert: int | None
    floating: bool


def save_tensors(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Save a model as its transformers does, and return the tensors by their keys on disk, and config.json."""
    import json

    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tensors: dict[str, Any] = {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            tensors |= load_file(path)
        return tensors, json.loads((Path(folder) / "config.json").read_text())


def read_layout(model: Any, experts: dict[str, int]) -> dict[str, OnDisk]:
    """Return what lies on disk of a model, by key. The model is float64 and useless afterwards.

    Args:
        model: built, on the CPU.
        experts: names of the parameters that have an axis of experts in front → how many they have.
    """
    import torch

    model.double()
    names = [name for name, _ in model.named_parameters()]
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            parameter.fill_(float(number + 1))
            if name in experts:
                offsets = STEP * torch.arange(parameter.shape[0], dtype=torch.float64)
                parameter.add_(offsets.view(-1, *[1] * (parameter.dim() - 1)))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.fill_(BUFFER)
    tensors, _ = save_tensors(model)
    return {key: _look(tensor, names) for key, tensor in tensors.items()}


def _look(tensor: Any, names: list[str]) -> OnDisk:
    import torch

    shape, floating = tuple(tensor.shape), bool(tensor.is_floating_point())
    nothing = OnDisk(shape=shape, parameters=(), expert=None, floating=floating)
    if not floating:
        return nothing
    found: dict[int, set[int]] = {}
    for value in torch.unique(tensor.double()).tolist():
        number = int(value // 1) - 1
        expert = (value - value // 1) / STEP
        if not 0 <= number < len(names) or expert != int(expert):
            return nothing
        found.setdefault(number, set()).add(int(expert))
    experts = set().union(*found.values())
    return OnDisk(
        shape=shape,
        parameters=tuple(names[number] for number in sorted(found)),
        expert=experts.pop() if len(experts) == 1 else None,
        floating=True,
    )
