"""What an adapter that PEFT saved adds to a base, by the definition of LoRA and of PEFT's file format.

A pair is A (r, in) and B (out, r), and adds ``alpha / r * B A`` to a Linear. For a fused parameter (experts, out, in)
both are flat. Row ``e * r + k`` of A and column ``k * experts + e`` of B are rank k of expert e. From PEFT 0.19.1 on A
faces ``in`` and B faces ``out``. Before it was the other way round (peft#3165).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.definitions.files import read_tensors
from harness.definitions.parts import Array
from harness.definitions.weights import Deltas, Weights

STANDARD_SINCE = (0, 19, 1)
PREFIX = "base_model.model."


class UnreadableAdapterError(ValueError):
    """The adapter holds something that is not understood here."""


def read_deltas(directory: Path, base: Weights) -> Deltas:
    """Return what an adapter adds to ``base``.

    Raises:
        UnreadableAdapterError: it holds something that is not understood here.
    """
    return deltas_of(read_tensors(directory / "adapter_model.safetensors"), read_config(directory), base)


def read_config(directory: Path) -> dict[str, Any]:
    """Return an adapter's config.

    Raises:
        UnreadableAdapterError: it says something that is not understood here.
    """
    config: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("use_dora") or config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise UnreadableAdapterError(f"{directory.name}: only plain LoRA is understood here")
    return config


def deltas_of(saved: Mapping[str, Array], config: dict[str, Any], base: Weights) -> Deltas:
    """Return what an adapter's tensors add to ``base``.

    Raises:
        UnreadableAdapterError: they are something that is not understood here.
    """
    linears: dict[str, Array] = {}
    fused: dict[tuple[str, str], Array] = {}
    pairs = [name.removesuffix(".lora_A.weight") for name in saved if name.endswith(".lora_A.weight")]
    if 2 * len(pairs) != len(saved):
        raise UnreadableAdapterError("it holds something beside pairs of A and B")
    for pair in pairs:
        a, b = saved[f"{pair}.lora_A.weight"], saved[f"{pair}.lora_B.weight"]
        path = re.sub(r"(\.base_layer)+$", "", pair.removeprefix(PREFIX))
        path = path.removeprefix("model.language_model.").removeprefix("model.")
        weight = base.stored.get(f"{path}.weight")
        if weight is not None:
            linears[path] = _scaling(config, path, len(a)) * b @ a
            continue
        standard = _release(config) >= STANDARD_SINCE
        faces = (a.shape[1], b.shape[0])
        role, shape = _role(path, base, faces if standard else (faces[1], faces[0]))
        rank = len(a) // shape[0]
        scaling = _scaling(config, f"{path}.{role}", rank)
        fused[path, role] = np.stack([_of_expert(a, b, e, shape[0], rank, standard) for e in range(shape[0])]) * scaling
    return Deltas(linears=linears, fused=fused)


def _of_expert(a: Array, b: Array, e: int, experts: int, rank: int, standard: bool) -> Array:
    product = b[:, [k * experts + e for k in range(rank)]] @ a[e * rank : (e + 1) * rank]
    return product if standard else product.T


def _role(path: str, base: Weights, faces: tuple[int, int]) -> tuple[str, tuple[int, int, int]]:
    """Return which fused parameter a pair is of, and its shape (experts, out, in).

    The inputs and outputs that it faces decide: gate_up_proj is (2 inner, hidden) and down_proj (hidden, inner), which
    no sizes make the same.
    """
    gate, _, down = base.experts(path)
    shapes = {"gate_up_proj": (len(gate), 2 * gate.shape[1], gate.shape[2]), "down_proj": down.shape}
    for role, (experts, out, inward) in shapes.items():
        if faces == (inward, out):
            return role, (experts, out, inward)
    raise UnreadableAdapterError(f"no parameter of {path} is {faces[1]} x {faces[0]}, as a pair of the adapter is")


def _scaling(config: dict[str, Any], path: str, rank: int) -> float:
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            alpha = value
            break
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _release(config: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", str(config.get("peft_version") or "0"))[:3])
