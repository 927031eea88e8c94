"""The routed experts of one layer as the base stores them, fused or one Linear each, behind one view.

The number of experts is a property of the whole checkpoint: the Linears of one layer may be spread over any number of
shards, so it is counted over all of them and held against config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.merge.base.checkpoint import Checkpoint
from harness.merge.base.families import Family
from harness.merge.base.names import ExpertKeys, parts_of
from harness.merge.base.weights import Weights
from harness.merge.errors import (
    SHOWN,
    InconsistentCheckpointError,
    UnsupportedAdapterError,
    UnsupportedBaseError,
    listed,
)

MAX_EXPERTS = 65536
"""A plan names every expert; published models have up to some hundreds, and a header can say anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where some rows of one expert of a parameter are.

    Attributes:
        key: the tensor that holds them.
        start: their first element in that tensor.
        rows: how many they are.
        offset: their first row in the parameter.
    """

    key: str
    start: int
    rows: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class ExpertParameter:
    """One expert parameter of one layer, wherever its parts are: per expert (rows, columns) as stored.

    Attributes:
        num_experts: how many there are.
        rows: out_features, or in_features where ``transposed``.
        columns: the other.
        transposed: whether it is stored as (in, out).
        fused_key: its 3D tensor, None where every expert has Linears of its own.
        linears: the keys of each part by expert, where there is no 3D tensor.
        parts: which Linears make it up, in their order.
    """

    num_experts: int
    rows: int
    columns: int
    transposed: bool
    fused_key: str | None
    linears: Mapping[str, Mapping[int, str]]
    parts: tuple[str, ...]

    @property
    def out_features(self) -> int:
        """Output features of one expert: for gate_up_proj those of both halves."""
        return self.columns if self.transposed else self.rows

    @property
    def in_features(self) -> int:
        """Input features of one expert."""
        return self.rows if self.transposed else self.columns

    def places(self, expert: int, part: str | None = None) -> list[Place]:
        """Return where one expert is on disk: all of it, or one part (``gate_proj`` of ``gate_up_proj``).

        Raises:
            UnsupportedAdapterError: a part of a transposed parameter, which is no run of rows.
        """
        rows = self.rows // len(self.parts)
        wanted = self.parts if part is None else (part,)
        if self.fused_key is not None:
            start = expert * self.rows * self.columns
            if part is None:
                return [Place(key=self.fused_key, start=start, rows=self.rows, offset=0)]
            if self.transposed:
                raise UnsupportedAdapterError(
                    f"the adapter has a LoRA for one expert's {part}, and {self.fused_key} is stored transposed; no"
                    " release of"
                    " transformers has such Linears, and how halves are interleaved is not assumed."
                )
            first = self.parts.index(part) * rows
            return [Place(key=self.fused_key, start=start + first * self.columns, rows=rows, offset=0)]
        return [
            Place(
                key=self.linears[name][expert],
                start=0,
                rows=rows,
                offset=self.parts.index(name) * rows if part is None else 0,
            )
            for name in wanted
        ]


def _check_count(base: Checkpoint, found: set[int], what: str, more: int = 0) -> int:
    """Return the number of experts, proved to be 0, 1, … without a hole and what config.json declares, and ``more``."""
    expected = len(found) if base.num_experts is None else base.num_experts + more
    # Counted from what is there: a config that declares a billion experts must not make us list them.
    if len(found) != expected or max(found, default=-1) >= expected:
        missing = [str(expert) for expert in range(min(expected, len(found) + SHOWN + 1)) if expert not in found]
        extra = [str(expert) for expert in found if expert >= expected]
        raise InconsistentCheckpointError(
            f"{what} should have {expected} experts; missing: {listed(missing) or 'none'}; unexpected:"
            f" {listed(extra) or 'none'}."
        )
    return expected


def _fused(
    base: Checkpoint, weights: Weights, key: str, parts: tuple[str, ...], *, transposed: bool, more: int
) -> ExpertParameter:
    shape = weights[key].shape
    if len(shape) != 3:  # noqa: PLR2004 - (num_experts, out, in)
        raise UnsupportedBaseError(
            f"{key} has shape {list(shape)} ({weights[key].dtype}); expected (num_experts, out, in)."
        )
    if shape[0] > MAX_EXPERTS:
        raise UnsupportedBaseError(f"{key} holds {shape[0]} experts; more than {MAX_EXPERTS} are not merged.")
    count = None if base.num_experts is None else base.num_experts + more
    if count not in {None, shape[0]}:
        raise InconsistentCheckpointError(f"{key} holds {shape[0]} experts, config.json declares {count}.")
    out_features = shape[2 if transposed else 1]
    if out_features % len(parts):
        raise InconsistentCheckpointError(
            f"{key} has {out_features} output features, which {len(parts)} parts cannot share."
        )
    return ExpertParameter(
        num_experts=shape[0],
        rows=shape[1],
        columns=shape[2],
        transposed=transposed,
        fused_key=key,
        linears={},
        parts=parts,
    )


def read_expert_parameter(
    base: Checkpoint, weights: Weights, path: str, keys: ExpertKeys, parameter: str, *, family: Family
) -> ExpertParameter | None:
    """Return the parameter ``gate_up_proj`` or ``down_proj`` of the experts module at ``path``, or None if the base has
    none.

    Args:
        base: the checkpoint.
        weights: its weights.
        path: the module, for messages.
        keys: what is stored of it.
        parameter: which parameter.
        family: how its model type stores them.

    Raises:
        InconsistentCheckpointError: experts are missing, differ in shape, or are stored twice.
        UnsupportedBaseError: the shapes are not those of plain weights.
    """
    parts = parts_of(family)[parameter]
    told = base.text_config.get(family.idle_experts) if family.idle_experts and parameter != "down_proj" else 0
    more = told if type(told) is int else 0
    linears = {part: keys.linears[part] for part in parts if part in keys.linears}
    fused = keys.fused.get(parameter)
    if fused is not None and linears:
        raise InconsistentCheckpointError(f"{path} stores {parameter} twice: as {fused} and as one tensor per expert.")
    if fused is not None:
        return _fused(base, weights, fused, parts, transposed=family.transposed, more=more)
    if not linears:
        return None
    if len(linears) != len(parts):
        raise InconsistentCheckpointError(f"{path} has only {listed(linears)} of {', '.join(parts)}.")
    counts = {part: _check_count(base, set(by_expert), f"{path}.*.{part}", more) for part, by_expert in linears.items()}
    shapes = {weights[key].shape for by_expert in linears.values() for key in by_expert.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:  # noqa: PLR2004 - (out, in)
        raise InconsistentCheckpointError(f"the experts of {path} differ in shape: {sorted(shapes)}.")
    rows, columns = next(iter(shapes))
    return ExpertParameter(
        num_experts=min(counts.values()),
        rows=rows * len(parts),
        columns=columns,
        transposed=False,
        fused_key=None,
        linears=linears,
        parts=parts,
    )
