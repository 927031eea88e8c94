"""What a base, a base with an adapter, or their merge says by definition, from the files alone."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness.definitions.adapter import read_deltas
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
    architecture = importlib.import_module(f"harness.definitions.{family}")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    weights = Weights.read(base)
    if adapter is not None:
        weights = weights.plus(read_deltas(adapter, weights), rounded_to=rounded_to)
    return np.stack([architecture.logits(weights, config, np.asarray(prompt)) for prompt in prompts])
