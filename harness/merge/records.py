"""The plan of a merge: immutable records of what changes, by which lora pair, and how that was decided.

A plan is made from headers alone and is all that the merge itself needs. The unit of work is a ``Region``: a run of whole rows
of one on-disk tensor, contiguous in the file, that gets one slice of one expert's delta. A Linear is one region, a fused
(num_experts, out, in) tensor one per expert, and a half of a fused gate_up_proj is one too, so every combination of layouts
in memory and on disk is the same small operation.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from harness.merge.adapter import Adapter, LoraPair
from harness.merge.checkpoint import Checkpoint
from harness.merge.layout import Decision
from harness.merge.names import KINDS, Kind

DtypeName = Literal["float32", "bfloat16", "float16"]
DTYPE_NAMES: dict[DtypeName, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""torch's names of the dtypes that a merge can write, and the safetensors format's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairUse:
    """How one lora pair is read.

    ``name`` is what PEFT's patterns see: the module, or ``module.parameter``. ``num_experts`` is None for a Linear, whose
    delta is ``scaling * lora_B @ lora_A``. For a fused parameter ``swapped`` and ``grouped_by_expert`` are the adapter's io layout and
    B packing.
    """

    pair: LoraPair
    name: str
    rank: int
    scaling: float
    num_experts: int | None = None
    swapped: bool = False
    grouped_by_expert: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Rows of a tensor that get one slice of a delta.

    ``start``: the first element, counted within the tensor; ``rows`` x ``columns`` elements follow contiguously.
    ``use``: position in ``MergePlan.uses``. ``expert``: which expert of that pair, None for a Linear.
    ``offset``: the first row of that expert's (out, in) delta that belongs here.
    """

    start: int
    rows: int
    columns: int
    use: int
    expert: int | None
    offset: int

    @property
    def stop(self) -> int:
        """The element after the last."""
        return self.start + self.rows * self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One on-disk tensor that a lora pair covers. ``expert`` is None for a tensor that holds all of them, or none."""

    key: str
    shard: int
    kind: Kind
    layer: int | None
    expert: int | None
    regions: tuple[Region, ...]


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """What a merge will do. ``rows`` are in the order in which the tensors lie in the shards.

    ``io_layout`` and ``b_packing`` are None when the adapter covers nothing fused. ``dtype`` is the override asked for, or None to keep
    each tensor's own.
    """

    base: Checkpoint
    adapter: Adapter
    uses: tuple[PairUse, ...]
    rows: tuple[PlanRow, ...]
    io_layout: Decision | None
    b_packing: Decision | None
    dtype: DtypeName | None
    notes: tuple[str, ...]

    @property
    def attempted(self) -> int:
        """Number of on-disk tensors that a lora pair covers."""
        return len(self.rows)

    def summary(self) -> dict[str, object]:
        """Return totals and decisions as JSON-ready values."""
        kinds = Counter(row.kind for row in self.rows)
        return {
            "attempted": self.attempted,
            "by_kind": {kind: kinds[kind] for kind in KINDS if kinds[kind]},
            "lora_pairs": len(self.uses),
            "tensors": len(self.base.shard_of),
            "shards": len(self.base.shards),
            "bytes": sum(shard.size for shard in self.base.shards),
            "bytes_changed": sum(self.base.info(row.key).nbytes for row in self.rows),
            "io_layout": self.io_layout.to_json() if self.io_layout else None,
            "b_packing": self.b_packing.to_json() if self.b_packing else None,
            "dtype": self.dtype,
            "files_left_out": list(self.base.left_out),
            "notes": list(self.notes),
        }

    def to_json(self) -> dict[str, object]:
        """Return the summary and one entry per changed tensor as JSON-ready values."""
        rows = [
            {
                "key": row.key,
                "shard": self.base.shards[row.shard].name,
                "kind": row.kind,
                "layer": row.layer,
                "expert": row.expert,
                "adapter": sorted({self.uses[region.use].pair.module for region in row.regions}),
                "scaling": sorted({self.uses[region.use].scaling for region in row.regions}),
            }
            for row in self.rows
        ]
        return {**self.summary(), "rows": rows}
