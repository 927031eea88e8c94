"""What a checkpoint says by its architecture's definition: a forward in numpy and float64, one file for each family.

No library under test has a part in it: no torch, transformers, PEFT or engine of ours. It reads the files on disk. So a
fault that is in every model that a library makes, trained, reloaded and merged alike, shows against it.

A file ``<family>.py`` that defines ``logits(weights, config, tokens)`` is a family. It reads as the architecture's
specification, and is slow on purpose.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from harness.truth.adapter import read_deltas
from harness.truth.weights import Weights

__all__ = ["UnknownFamilyError", "logits_of_files"]


class UnknownFamilyError(LookupError):
    """No file describes this family's architecture."""


def logits_of_files(family: str, base: Path, prompts: Any, *, adapter: Path | None = None) -> Any:
    """Return what a base checkpoint says, or a base with an adapter: (prompts, tokens, vocabulary) float64.

    Args:
        family: the file below here that describes it.
        base: a checkpoint's directory. Values of any floating dtype are taken as they are.
        prompts: (prompts, tokens) integers.
        adapter: a directory that PEFT saved, or None.

    Raises:
        UnknownFamilyError: there is no such file.
        UnreadableAdapterError: the adapter holds something that is not understood here.
        KeyError: a weight is not there.
    """
    import numpy as np

    try:
        architecture = importlib.import_module(f"{__name__}.{family}")
    except ModuleNotFoundError as error:
        raise UnknownFamilyError(f"harness/truth has no file for {family}") from error
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    weights = Weights.read(base)
    if adapter is not None:
        weights = weights.plus(read_deltas(adapter, weights))
    return np.stack([architecture.logits(weights, config, np.asarray(prompt)) for prompt in prompts])
