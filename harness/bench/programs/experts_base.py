"""Writes the checkpoint of a family that experts are quantised from: bf16, experts of a size at which they outweigh
everything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES = {
    "hidden": 768, "moe_intermediate": 768, "dense_intermediate": 1024, "num_experts": 64, "top_k": 4, "heads": 12,
    "kv_heads": 4, "head_dim": 64,
    "vocab": 256, "rank": 16,
}  # fmt: skip
"""Per layer with experts 64 x 3 x 768 x 768 weights: 216 MiB in 16 bits."""


def load() -> dict[str, str]:
    """Import what writing needs."""
    import numpy as np

    return {"numpy": np.__version__}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Write it."""
    from harness.worker.checkpoints.family import build
    from harness.worker.checkpoints.geometry import Geometry
    from harness.worker.checkpoints.writer import write_checkpoint

    checkpoint = build(request["family"], Geometry(**SIZES), "published")
    write_checkpoint(checkpoint, Path(request["out"]), seed=request["seed"], dtype="bf16")
    return {}
