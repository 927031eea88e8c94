"""What a checkpoint says by its architecture's definition: a forward in numpy and float64, one file for each family.

No library under test has a part in it: no torch, transformers, PEFT or engine of ours. It reads the files on disk. So a
fault that is in every model that a library makes, trained, reloaded and merged alike, shows against it.

A file ``<family>.py`` that defines ``logits(weights, config, tokens)`` is a family. It reads as the architecture's
specification, and is slow on purpose. This file imports no numpy: the host asks it which families there are.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["is_defined"]

SHARED = ("__init__", "adapter", "coding", "files", "parts", "said", "weights")
"""Files here that are no family's."""


def is_defined(family: str) -> bool:
    """Say whether a file here describes a family's architecture."""
    return family not in SHARED and Path(__file__).with_name(f"{family}.py").exists()
