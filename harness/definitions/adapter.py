"""What an adapter that PEFT saved adds to a base, by the definition of LoRA and of PEFT's file format.

A pair is A (r, in) and B (out, r), and adds ``alpha / r * B A`` to a Linear (arXiv 2106.09685), or rank-stabilised
``alpha / sqrt(r) * B A`` (arXiv 2312.03732). For a fused parameter (experts, out, in) both are flat. Row ``e * r + k``
of A and column ``k * experts + e`` of B are rank k of expert e. From PEFT 0.19.1 on A faces ``in`` and B faces ``out``.
Before it was the other way round (peft#3165).

An embedding is looked up, so its weight lies the other way round, (tokens, features). Its pair is ``lora_embedding_A``
(r, tokens) and ``lora_embedding_B`` (features, r), and adds the transpose of their product. Beside a LoRA on embeddings
or head PEFT saves these weights of the base too, as ``base_layer.weight``. A module of ``modules_to_save`` is saved
whole, by its own name. So are embeddings and head where the vocabulary was resized, trained or not: rows that the base
does not have begin at zero here.

With ``bias="lora_only"`` the biases of Linears that have a LoRA are trained themselves. They are saved whole, as
``base_layer.bias``, and take the base's place.

DoRA gives a Linear another weight: each row of V = W + the pair's delta, divided by its norm, times a magnitude m
(arXiv 2402.09353, equation 5). Training holds the norm constant (its section 4.3), and so must a slope.
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
from harness.definitions.weights import Deltas, Weights, grown

STANDARD_SINCE = (0, 19, 1)
PREFIX = "base_model.model."
MAGNITUDE = ".lora_magnitude_vector"
EMBEDDING_A = ".lora_embedding_A"
COPY = ".base_layer.weight"
TRAINED_COPY, ORIGINAL = ".modules_to_save.weight", ".original_module.weight"
"""Beside what is saved whole, where the vocabulary was resized: once more, and as it was before training."""
ENDS = ("embed_tokens.weight", "lm_head.weight")
"""What PEFT saves whole where the vocabulary was resized."""
BIAS = ".base_layer.bias"
BIASES = ("none", "lora_only")


class UnreadableAdapterError(ValueError):
    """The adapter holds something that is not understood here."""


def read_deltas(directory: Path, base: Weights) -> Deltas:
    """Return what an adapter adds to ``base``, and those of other names that PEFT saves in folders below it.

    Raises:
        UnreadableAdapterError: one holds something that is not understood here.
    """
    saved = without_copies(read_tensors(directory / "adapter_model.safetensors"), base)
    own = deltas_of(saved, read_config(directory), base)
    return own.plus(read_named(directory, base))


def read_named(directory: Path, base: Weights) -> Deltas:
    """Return what the adapters in folders below a directory add to ``base``. A DoRA would hang on the others.

    Raises:
        UnreadableAdapterError: one holds something that is not understood here.
    """
    sums = Deltas()
    for path in sorted(directory.glob("*/adapter_config.json")):
        if read_config(path.parent).get("use_dora"):
            raise UnreadableAdapterError(f"{path.parent.name}: DoRA beside another adapter is not understood here")
        sums = sums.plus(read_deltas(path.parent, base))
    return sums


def without_copies(saved: Mapping[str, Array], base: Weights) -> dict[str, Array]:
    """Return an adapter's tensors without the weights of the base that PEFT saves beside them.

    Raises:
        UnreadableAdapterError: one is not the base's.
    """
    kept = {name: tensor for name, tensor in saved.items() if not _is_end_of(name, tensor, base)}
    for name in [name for name in kept if name.endswith(TRAINED_COPY)]:
        own = saved.get(f"{name.removesuffix(TRAINED_COPY)}.weight")
        if own is None or not np.array_equal(own, kept.pop(name)):
            raise UnreadableAdapterError(f"{name} is not what stands in its place")
    for name in [name for name in kept if name.endswith(ORIGINAL)]:
        stored = base.stored.get(f"{_path(name.removesuffix(ORIGINAL))}.weight")
        if stored is None or not np.array_equal(stored, kept.pop(name)[: len(stored)]):
            raise UnreadableAdapterError(f"{name} is not what the base has there")
    for name in [name for name in saved if name.endswith(COPY)]:
        stored = base.stored.get(f"{_path(name.removesuffix(COPY))}.weight")
        if stored is None or not np.array_equal(stored, kept.pop(name)):
            raise UnreadableAdapterError(f"{name} is not what the base has there")
    return kept


def _is_end_of(name: str, tensor: Array, base: Weights) -> bool:
    """Whether a tensor is the base's own embedding or head, as it is where the base has that vocabulary already."""
    stored = base.stored.get(_path(name))
    return stored is not None and _path(name) in ENDS and np.array_equal(stored, tensor)


def _has_grown(name: str, tensor: Array, base: Weights) -> bool:
    """Whether a tensor is an embedding or head of more tokens than the base's."""
    return _path(name) in ENDS and len(tensor) > len(base.stored[_path(name)])


def _is_whole(config: dict[str, Any], path: str) -> bool:
    """Whether a module is saved whole: ``modules_to_save`` has its name, or its end from a dot on."""
    return any(path.endswith(f".{name}") for name in config.get("modules_to_save") or ())


def _is_whole_tensor(config: dict[str, Any], name: str) -> bool:
    return ".lora_" not in name and _is_whole(config, name.removesuffix(".weight"))


def _path(pair: str) -> str:
    """Return a module's name as ``Weights`` has it."""
    return pair.removeprefix(PREFIX).removeprefix("model.language_model.").removeprefix("model.")


def read_config(directory: Path) -> dict[str, Any]:
    """Return an adapter's config.

    Raises:
        UnreadableAdapterError: it says something that is not understood here.
    """
    config: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA" or config.get("bias", "none") not in BIASES:
        raise UnreadableAdapterError(f"{directory.name}: only LoRA is understood here, with biases of its own Linears")
    return config


def norms_of(saved: Mapping[str, Array], config: dict[str, Any], base: Weights) -> Mapping[str, Array]:
    """Return the norms that DoRA divides rows by, (out,) each: Linear → norms. A plain LoRA has none."""
    return _read(saved, config, base, None)[1]


def deltas_of(
    saved: Mapping[str, Array], config: dict[str, Any], base: Weights, *, norms: Mapping[str, Array] | None = None
) -> Deltas:
    """Return what an adapter's tensors add to ``base``.

    Args:
        saved: the tensors by their saved names.
        config: what the adapter says of itself.
        base: what it was trained on.
        norms: what DoRA's rows are divided by; None: by their own norms.

    Raises:
        UnreadableAdapterError: they are something that is not understood here.
    """
    return _read(saved, config, base, norms)[0]


def _read(
    saved: Mapping[str, Array], config: dict[str, Any], base: Weights, norms: Mapping[str, Array] | None
) -> tuple[Deltas, Mapping[str, Array]]:
    """Return what an adapter adds, and the norms that rows were divided by."""
    linears: dict[str, Array] = {}
    fused: dict[tuple[str, str], Array] = {}
    divided: dict[str, Array] = {}
    pairs = [name.removesuffix(".lora_A.weight") for name in saved if name.endswith(".lora_A.weight")]
    embeddings = [name.removesuffix(EMBEDDING_A) for name in saved if name.endswith(EMBEDDING_A)]
    whole = [name for name in saved if _has_grown(name, saved[name], base) or _is_whole_tensor(config, name)]
    trained = {pair for pair in pairs if config.get("bias", "none") != "none"}
    biases = [name for name in saved if name.removesuffix(BIAS) in trained]
    if (3 if config.get("use_dora") else 2) * len(pairs) + 2 * len(embeddings) + len(whole + biases) != len(saved):
        raise UnreadableAdapterError("it holds more than pairs of A and B, their magnitudes, and what is whole")
    for name in whole:
        linears[_path(name.removesuffix(".weight"))] = saved[name] - grown(base.stored[_path(name)], len(saved[name]))
    for name in biases:
        path = f"{_path(name.removesuffix(BIAS))}.bias"
        if path not in base.stored:
            raise UnreadableAdapterError(f"{name} is a bias that the base does not have")
        linears[path] = saved[name] - base.stored[path]
    for pair in embeddings:
        a, b = saved[f"{pair}{EMBEDDING_A}"], saved[f"{pair}.lora_embedding_B"]
        linears[_path(pair)] = _scaling(config, pair.removeprefix(PREFIX), len(a)) * (b @ a).T
    for pair in pairs:
        a, b = saved[f"{pair}.lora_A.weight"], saved[f"{pair}.lora_B.weight"]
        module = re.sub(r"(\.base_layer)+$", "", pair.removeprefix(PREFIX))
        path = _path(module)
        weight = base.stored.get(f"{path}.weight")
        if weight is not None:
            linears[path] = _scaling(config, _targeted(config, module), len(a)) * b @ a
            if config.get("use_dora"):
                directed = weight + linears[path]
                own = np.sqrt((directed**2).sum(axis=1))
                divided[path] = own if norms is None else norms[path]
                linears[path] = (saved[f"{pair}{MAGNITUDE}"] / divided[path])[:, None] * directed - weight
            continue
        if config.get("use_dora"):
            raise UnreadableAdapterError(f"{module} is no Linear of the base, and has DoRA")
        standard = _release(config) >= STANDARD_SINCE
        faces = (a.shape[1], b.shape[0])
        role, shape = _role(path, base, faces if standard else (faces[1], faces[0]))
        rank = len(a) // shape[0]
        scaling = _scaling(config, f"{module}.{role}", rank)
        fused[path, role] = np.stack([_of_expert(a, b, e, shape[0], rank, standard) for e in range(shape[0])]) * scaling
    return Deltas(linears=linears, fused=fused), divided


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


def _targeted(config: dict[str, Any], module: str) -> str:
    """Return the name by which a Linear was targeted: its own, or its weight's among ``target_parameters``."""
    weight = f"{module}.weight"
    names = config.get("target_parameters") or ()
    return weight if any(weight == name or weight.endswith(f".{name}") for name in names) else module


def _scaling(config: dict[str, Any], name: str, rank: int) -> float:
    """Return what a pair's product is multiplied with.

    ``alpha_pattern`` is "the mapping from layer names or regexp expression to alphas which are different from the
    default alpha" (PEFT's LoraConfig). The first that fits the name, or its end from a dot on, counts. The rank is the
    factors' own, whatever ``rank_pattern`` says of it.
    """
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            alpha = value
            break
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _release(config: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", str(config.get("peft_version") or "0"))[:3])
