"""What a cell is asked beside its stack: each field with its default and its meaning, written once.

The host's ``Cell`` and the worker's ``Request`` inherit these fields. Ids, reproduce lines, the request file and the
help of ``harness run`` are made from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

Dtype = Literal["float32", "bf16"]
Device = Literal["cpu", "cuda"]

NAME_PATTERN = r"[a-z0-9][a-z0-9_.-]*"
"""What a name in a cell looks like: nothing that a shell, a file system or a glob treats specially."""

SEEDS = 2**32
"""Seeds lie below this, which every library takes."""


@dataclass(frozen=True, kw_only=True)
class CellFields:
    """The fields. Those with a default appear in an id only where they differ from it."""

    family: str = field(metadata={"meaning": "Model family."})
    recipe: str = field(metadata={"meaning": "What is trained, and how."})
    geometry: str = field(default="distinct", metadata={"meaning": "Preset of sizes."})
    variant: str = field(
        default="published", metadata={"meaning": "How the checkpoint lies on disk, where a family has several forms."}
    )
    dtype: Dtype = field(default="float32", metadata={"meaning": "How the checkpoint is stored: float32 or bf16."})
    device: Device = field(default="cpu", metadata={"meaning": "Where the cell computes: cpu or cuda."})
    engine: str = field(default="reference", metadata={"meaning": "What merges."})
    seed: int = field(default=0, metadata={"meaning": "Seed of weights, data and LoRA initialisation."})
    fault: str | None = field(
        default=None,
        metadata={"meaning": "What is broken on purpose in the cell's own merge: such a cell never passes."},
    )


DEFAULTS: dict[str, object] = {
    item.name: item.default
    for item in sorted(fields(CellFields), key=lambda item: item.name)
    if item.name not in {"family", "recipe"}
}
"""The default of every field that has one, in the order in which ids and reproduce lines name them."""

MEANINGS: dict[str, str] = {item.name: item.metadata["meaning"] for item in fields(CellFields)}
"""What each field means, as help texts say it."""
