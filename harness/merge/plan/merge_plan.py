"""The plan of a merge: what changes, by which tensors of which adapter, and how that was decided; immutable records.

A plan is made from headers alone and is all that the merge itself needs. The unit of work is a ``Region``: a run of
whole rows of one output tensor, contiguous in the file. Its values are the base's (or a replacement's) plus any number
of deltas, each a slice of some expert's.

A Linear is one region. A fused (num_experts, …) tensor has one per expert. A half of a fused gate_up_proj is one too,
and so is the row of a trained token. So every combination of adapters, layouts in memory and layouts on disk is the
same small operation. Whoever writes the output needs ``Output`` (which tensors a shard will hold), ``PlanRow`` (what to
do to one) and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.merge.adapter.adapter import Adapter, LoraPair
from harness.merge.adapter.layout import Decision
from harness.merge.base.checkpoint import Checkpoint
from harness.merge.base.names import KINDS, Kind
from harness.merge.base.weight import PlainSource, QuantisedSource
from harness.merge.files.safetensors_file import TensorInfo

DtypeName = Literal["float32", "bfloat16", "float16"]
DTYPE_NAMES: dict[DtypeName, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""torch's names of the dtypes that a merge can write, and the safetensors format's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairContribution:
    """What one lora pair gives to the base, and how it is read.

    The delta of an expert is ``scaling * lora_B @ lora_A`` in the coordinates of the stored tensor, or with ``swapped``
    its transpose.

    Attributes:
        pair: the pair.
        name: what PEFT's patterns see: the module, or ``module.parameter``.
        rank: of one expert's LoRA.
        scaling: PEFT's, times the adapter's weight in the merge.
        adapter: which adapter of the plan it is of.
        num_experts: None for anything but a fused parameter.
        swapped: see above.
        grouped_by_expert: the B packing of a fused parameter's pair; otherwise it is ``rank_major``.
    """

    pair: LoraPair
    name: str
    rank: int
    scaling: float
    adapter: int = 0
    num_experts: int | None = None
    swapped: bool = False
    grouped_by_expert: bool = False

    @property
    def magnitude(self) -> TensorInfo | None:
        """DoRA's magnitude vector, one value per output feature."""
        return self.pair.magnitude

    @property
    def module(self) -> str:
        """The adapted module, for messages and the manifest."""
        return self.pair.module

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """The adapter's tensors that are read, by role."""
        found = {"lora_A": self.pair.lora_A, "lora_B": self.pair.lora_B}
        return found if self.magnitude is None else {**found, "lora_magnitude_vector": self.magnitude}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorContribution:
    """A tensor of an adapter that is taken as it is: a fully trained one, or a trained token's rows.

    With ``scaling`` it is a bias to add.
    """

    module: str
    role: str
    info: TensorInfo
    adapter: int = 0
    scaling: float = 1.0

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """The adapter's tensors that are read, by role."""
        return {self.role: self.info}


Contribution = PairContribution | TensorContribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A slice of what one contribution gives.

    Attributes:
        contribution: position in ``MergePlan.contributions``.
        expert: which expert of it, None for a tensor without experts.
        offset: the first row of it that belongs to the region.
    """

    contribution: int
    expert: int | None
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Rows of an output tensor: ``values = replacement or base, plus the sum of the terms``.

    ``start``: the first element, counted within the tensor; ``rows`` x ``columns`` elements follow contiguously.
    """

    start: int
    rows: int
    columns: int
    terms: tuple[Term, ...] = ()
    replacement: Term | None = None

    @property
    def stop(self) -> int:
        """The element after the last."""
        return self.start + self.rows * self.columns

    @property
    def contributions(self) -> tuple[int, ...]:
        """Positions of everything that is read for this region."""
        replaced = () if self.replacement is None else (self.replacement.contribution,)
        return replaced + tuple(term.contribution for term in self.terms)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One tensor of the output that is not a copy of the base's tensor of that name.

    Attributes:
        key: its name.
        shard: position of the output shard that holds it.
        kind: what it is part of.
        layer: its decoder layer, None outside the decoder.
        expert: which expert's it is, None for a tensor that holds all of them, or none.
        shape: the output's.
        dtype: the output's, by the format's name.
        source: where values that no region replaces come from: a tensor of the base (for a new lm_head, the embedding
            it was tied to), a quantised one to decode, or None when there are none.
        regions: what the adapters change; empty for a tensor that is only dequantised or newly written.
    """

    key: str
    shard: int
    kind: Kind
    layer: int | None
    expert: int | None
    shape: tuple[int, ...]
    dtype: str
    source: PlainSource | QuantisedSource | None
    regions: tuple[Region, ...]


@dataclass(frozen=True, kw_only=True)
class AdapterPart:
    """One adapter of the merge: its weight, and the layouts it was read with (None when it covers nothing fused)."""

    adapter: Adapter
    weight: float
    io_layout: Decision | None
    b_packing: Decision | None


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """What a merge will do.

    Attributes:
        base: the base.
        parts: the adapters.
        contributions: what their tensors give, in an order that ``Term.contribution`` counts in.
        rows: the tensors that an adapter covers, in the order in which they lie in the shards.
        conversions: those that are written anew without that (dequantised, or untied), in the same order.
        dropped: tensors of the base that the output does not hold (scales of quantised ones).
        config: what changes in config.json; None removes a setting.
        base_as: which base the deltas go onto.
        quantization: the formats that the base is stored in.
        dtype: the override asked for, None to keep each tensor's own.
        notes: what is worth knowing and no fault.
    """

    base: Checkpoint
    parts: tuple[AdapterPart, ...]
    contributions: tuple[Contribution, ...]
    rows: tuple[PlanRow, ...]
    conversions: tuple[PlanRow, ...]
    dropped: frozenset[str]
    config: Mapping[str, object]
    base_as: Literal["original", "quantized"]
    quantization: str | None
    dtype: DtypeName | None
    notes: tuple[str, ...]

    @property
    def adapter(self) -> Adapter:
        """The adapter, or the first of several."""
        return self.parts[0].adapter

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The directories that are read."""
        return (self.base.root, *(part.adapter.root for part in self.parts))

    @property
    def io_layout(self) -> Decision | None:
        """The io layout of the first adapter that covers fused parameters."""
        return next((part.io_layout for part in self.parts if part.io_layout), None)

    @property
    def b_packing(self) -> Decision | None:
        """The B packing of the first adapter that covers fused parameters."""
        return next((part.b_packing for part in self.parts if part.b_packing), None)

    @property
    def attempted(self) -> int:
        """Number of on-disk tensors that an adapter covers."""
        return len(self.rows)

    def contributions_of(self, row: PlanRow) -> list[Contribution]:
        """Return everything that is read for a row."""
        return [
            self.contributions[number]
            for number in sorted({number for region in row.regions for number in region.contributions})
        ]

    def summary(self) -> dict[str, object]:
        """Return totals and decisions as JSON-ready values."""
        kinds = Counter(row.kind for row in self.rows)
        return {
            "attempted": self.attempted,
            "by_kind": {kind: kinds[kind] for kind in KINDS if kinds[kind]},
            "lora_pairs": sum(isinstance(contribution, PairContribution) for contribution in self.contributions),
            "tensors": len(self.base.shard_of),
            "shards": len(self.base.shards),
            "bytes": sum(shard.size for shard in self.base.shards),
            "bytes_changed": sum(
                self.base.info(key).nbytes for row in self.rows for key in (row.source.keys if row.source else ())
            ),
            "io_layout": self.io_layout.to_json() if self.io_layout else None,
            "b_packing": self.b_packing.to_json() if self.b_packing else None,
            "dtype": self.dtype,
            "base_as": self.base_as,
            "quantization": self.quantization,
            "dequantised": sum(isinstance(row.source, QuantisedSource) for row in (*self.rows, *self.conversions)),
            "config_changes": dict(self.config),
            "files_left_out": list(self.base.left_out),
            "notes": list(self.notes),
        }

    def to_json(self) -> dict[str, object]:
        """Return the summary, every contribution, and one entry per changed tensor, as JSON-ready values."""
        return {
            **self.summary(),
            "uses": [
                _contribution_json(contribution, self.parts[contribution.adapter])
                for contribution in self.contributions
            ],
            "rows": [self._row_json(row) for row in self.rows],
        }

    def _row_json(self, row: PlanRow) -> dict[str, object]:
        return {
            "key": row.key,
            "shard": self.base.shards[row.shard].name,
            "kind": row.kind,
            "layer": row.layer,
            "expert": row.expert,
            "shape": list(row.shape),
            "dtype": row.dtype,
            "adapter": sorted({contribution.module for contribution in self.contributions_of(row)}),
            "scaling": sorted({contribution.scaling for contribution in self.contributions_of(row)}),
            "regions": [
                {
                    "start": region.start,
                    "rows": region.rows,
                    "columns": region.columns,
                    "terms": [
                        {"use": term.contribution, "expert": term.expert, "from_row": term.offset}
                        for term in region.terms
                    ],
                    "replaced_by": None if region.replacement is None else region.replacement.contribution,
                }
                for region in row.regions
            ],
        }


def _contribution_json(contribution: Contribution, part: AdapterPart) -> dict[str, object]:
    """Return how the tensors of an adapter are read; layouts with what decided them, for fused parameters alone."""
    said: dict[str, object] = {
        "module": contribution.module,
        "adapter": contribution.adapter,
        "scaling": contribution.scaling,
    }
    if isinstance(contribution, TensorContribution):
        return {**said, "role": contribution.role, "shape": list(contribution.info.shape)}
    fused = contribution.num_experts is not None
    return {
        **said,
        "role": "lora pair",
        "rank": contribution.rank,
        "num_experts": contribution.num_experts,
        "dora": contribution.magnitude is not None,
        "io_layout": part.io_layout.to_json() if fused and part.io_layout else None,
        "b_packing": part.b_packing.to_json() if fused and part.b_packing else None,
    }
