"""What a base, a base with an adapter, or their merge says by definition, from the files alone."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness.definitions.adapter import deltas_of, norms_of, read_config, read_deltas, read_named, without_copies
from harness.definitions.files import read_tensors
from harness.definitions.parts import Array
from harness.definitions.weights import Weights


def logits_of_files(
    family: str,
    base: Path,
    prompts: Any,
    *,
    adapter: Path | None = None,
    rounded_to: Literal["float32", "bf16"] | None = None,
) -> Any:
    """Return what a base checkpoint says, or a base with an adapter: (prompts, tokens, vocabulary) float64.

    Args:
        family: the file below here that describes it.
        base: a checkpoint's directory. Values of any floating dtype are taken as they are.
        prompts: (prompts, tokens) integers.
        adapter: a directory that PEFT saved, or None.
        rounded_to: how a merge stores the weights that the adapter changes; None: it is not merged.

    Raises:
        ModuleNotFoundError: there is no such file.
        UnreadableAdapterError: the adapter holds something that is not understood here.
        KeyError: a weight is not there.
    """
    weights = Weights.read(base)
    if adapter is not None:
        weights = weights.plus(read_deltas(adapter, weights), rounded_to=rounded_to)
    return _logits(family, _config(base), weights, prompts)


Loss = Callable[[Mapping[str, Array]], float]


def loss_of_adapter(family: str, base: Path, adapter: Path, prompts: Array, counted: Array) -> tuple[Loss, Any]:
    """Return the loss as a function of an adapter's tensors, and the tensors as they are saved, by their saved names.

    The loss is the mean next-token cross entropy, in nats. The norms that DoRA divides by stay those of the adapter as
    it is saved, and so do adapters in folders below it.

    Args:
        family: the file below here that describes it.
        base: the base checkpoint's directory.
        adapter: the adapter's directory, whose config holds.
        prompts: (prompts, tokens) integers.
        counted: (prompts, tokens - 1) bool, which predictions count.
    """
    weights, said, config = Weights.read(base), read_config(adapter), _config(base)
    saved = without_copies(read_tensors(adapter / "adapter_model.safetensors"), weights)
    norms, named = norms_of(saved, said, weights), read_named(adapter, weights)

    def loss(tensors: Mapping[str, Array]) -> float:
        adapted = weights.plus(deltas_of(tensors, said, weights, norms=norms).plus(named))
        logits = _logits(family, config, adapted, prompts)[:, :-1]
        largest = logits.max(axis=-1, keepdims=True)
        whole = largest[..., 0] + np.log(np.exp(logits - largest).sum(axis=-1))
        right = np.take_along_axis(logits, prompts[:, 1:, None], axis=-1)[..., 0]
        return float((whole - right)[counted].mean())

    return loss, saved


def _config(base: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    text: dict[str, Any] = config.get("text_config", config)
    return text


def _logits(family: str, config: dict[str, Any], weights: Weights, prompts: Any) -> Array:
    architecture = importlib.import_module(f"harness.definitions.{family}")
    return np.stack([architecture.logits(weights, config, np.asarray(prompt)) for prompt in prompts])
