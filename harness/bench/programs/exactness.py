"""How exact merged checkpoints are: every element of every tensor that an adapter changes, against base + delta in
float64, rounded once.

Independent of what it judges: files are read with the safetensors library, deltas are computed here from the factors by
PEFT's definition (``peft.tuners.lora.layer.ParamWrapper.get_delta_weight``, 0.19.1: column ``j`` of lora_B belongs to
expert ``j % E``), and torch does the float64 arithmetic. ``harness.merge`` is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SafeOpen = Any
"""A file that the safetensors library, which has no annotations, has opened."""

MANTISSA_BITS = 8
"""Of bfloat16, the hidden one included."""

MIDDLE = 0x8000
"""The lower half of a float32 that lies in the middle between two bfloat16 numbers."""


@dataclass
class Counted:
    """Elements, and how they compare.

    Attributes:
        changed: elements that the right result or the contender's changes.
        exact: those that equal the correctly rounded result.
        beyond: those further than one unit in the last place of max(|base|, |delta|, |result|) from the float64 result.
        largest: the largest such distance of an element that is not correctly rounded, in those units.
    """

    changed: int = 0
    exact: int = 0
    beyond: int = 0
    largest: float = 0.0


def load() -> dict[str, str]:
    """Import torch and safetensors."""
    import safetensors
    import torch

    torch.set_num_threads(
        1
    )  # a tensor is too small to share, and threads that wait for each other on a busy machine are ten times slower
    return {"torch": torch.__version__, "safetensors": safetensors.__version__}


def round_once(values: torch.Tensor) -> torch.Tensor:
    """Return float64 values rounded to bfloat16 once, ties to even.

    Converted by way of float32, a value just beside the middle between two bfloat16 numbers first becomes that middle
    and then goes to the even one, right or wrong. There the float32 value is moved back one step to its own side of the
    middle.
    """
    import torch

    single = values.float()
    bits = single.view(torch.int32)
    tie = ((bits & 0xFFFF) == MIDDLE) & (single.double() != values)
    outwards = values.abs() > single.double().abs()
    step = torch.where(outwards, 1, -1).to(torch.int32)
    return torch.where(tie, bits + step, bits).view(torch.float32).bfloat16()


def ulp(magnitude: torch.Tensor) -> torch.Tensor:
    """Return the unit in the last place of bfloat16 at some float64 magnitudes.

    Of zero, that of the smallest normal number.
    """
    import torch

    smallest = torch.finfo(torch.bfloat16).tiny
    _, exponent = torch.frexp(magnitude.clamp(min=smallest))
    return torch.ldexp(torch.ones_like(magnitude), exponent - MANTISSA_BITS)


@dataclass(frozen=True)
class Expected:
    """What a tensor should have become.

    Attributes:
        base: (out, in), bfloat16.
        delta: (out, in), float64.
        exact: base + delta, float64.
        rounded: the same rounded once, bfloat16.
    """

    base: torch.Tensor
    delta: torch.Tensor
    exact: torch.Tensor
    rounded: torch.Tensor


def expect(base: torch.Tensor, delta: torch.Tensor) -> Expected:
    """Return what ``base`` (bfloat16) should become by ``delta`` (float64)."""
    exact = delta + base
    return Expected(base=base, delta=delta, exact=exact, rounded=round_once(exact))


def count(expected: Expected, merged: torch.Tensor, into: Counted) -> None:
    """Compare one tensor, (out, in) in bfloat16, and add what was found."""
    import torch

    changed = (expected.rounded != expected.base) | (merged != expected.base)
    wrong = changed & (merged != expected.rounded)
    into.changed += int(changed.sum())
    into.exact += int(changed.sum() - wrong.sum())
    base, delta, exact = (part[wrong].double() for part in (expected.base, expected.delta, expected.exact))
    unit = ulp(torch.maximum(torch.maximum(base.abs(), delta.abs()), exact.abs()))
    distance = (merged[wrong].double() - exact).abs() / unit
    into.beyond += int((~(distance <= 1)).sum())  # NaN is beyond everything
    into.largest = max(into.largest, float(distance.max()) if distance.numel() else 0.0)


class Tensors:
    """The tensors of a directory by name; experts may be stored one by one or fused."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        files: list[SafeOpen] = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
        self._where = {key: file for file in files for key in file.keys()}  # noqa: SIM118 - no mapping

    def expert(self, layer: int, expert: int, name: str, width: int) -> torch.Tensor:
        """Return one expert's projection (out, in)."""
        stem = f"model.layers.{layer}.mlp.experts"
        if f"{stem}.{expert}.{name}.weight" in self._where:
            return self[f"{stem}.{expert}.{name}.weight"]
        fused: torch.Tensor
        if name == "down_proj":
            fused = self._where[f"{stem}.down_proj"].get_slice(f"{stem}.down_proj")[expert]
            return fused
        start = 0 if name == "gate_proj" else width
        fused = self._where[f"{stem}.gate_up_proj"].get_slice(f"{stem}.gate_up_proj")[expert, start : start + width]
        return fused

    def __getitem__(self, key: str) -> torch.Tensor:
        tensor: torch.Tensor = self._where[key].get_tensor(key)
        return tensor


def deltas(adapter: Tensors, layer: int, sizes: Mapping[str, Any]) -> Iterator[tuple[int, str, torch.Tensor]]:
    """Yield (expert, projection, delta in float64) for every expert of a layer."""
    rank, experts, width = sizes["rank"], sizes["experts"], sizes["width"]
    stem = f"base_model.model.model.layers.{layer}.mlp.experts"
    for module, names in ((f"{stem}.base_layer", ("gate_proj", "up_proj")), (stem, ("down_proj",))):
        lora_A = adapter[f"{module}.lora_A.weight"].double()  # noqa: N806 - (E·r, in), the field's name
        lora_B = adapter[f"{module}.lora_B.weight"].double()  # noqa: N806 - (out, E·r)
        for expert in range(experts):
            delta = sizes["scaling"] * (lora_B[:, expert::experts] @ lora_A[expert * rank : (expert + 1) * rank])
            for place, name in enumerate(names):
                yield expert, name, delta[place * width : (place + 1) * width] if len(names) > 1 else delta


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Judge every directory in ``merged`` (contender to directory) on all experts of all layers."""
    base, adapter = Tensors(Path(request["base"])), Tensors(Path(request["adapter"]))
    merged = {name: Tensors(Path(folder)) for name, folder in request["merged"].items()}
    found = {name: Counted() for name in merged}
    sizes = request["sizes"]
    for layer in range(sizes["layers"]):
        for expert, name, delta in deltas(adapter, layer, sizes):
            expected = expect(base.expert(layer, expert, name, sizes["width"]), delta)
            for contender, tensors in merged.items():
                count(expected, tensors.expert(layer, expert, name, sizes["width"]), found[contender])
    return {name: asdict(counted) for name, counted in found.items()}
