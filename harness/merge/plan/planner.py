"""Planning: from headers, index and configurations to an immutable plan, before a byte is written.

Each adapter's tensors are matched to the base (``lora_targets``, ``full_tensors``), and every shape is checked. The
layouts are decided over the whole adapter (``adapter.layout``). Every match becomes claims on rows of output tensors,
and those become regions that do not overlap (``regions``). What no region consumes, what two claim and what is targeted
but not reached are errors that list names.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from harness.merge.adapter.adapter import Adapter, open_adapter
from harness.merge.adapter.layout import BPacking, Decision, IoLayout, decide_b_packing, decide_io_layout
from harness.merge.adapter.patterns import names_within
from harness.merge.base.checkpoint import open_checkpoint
from harness.merge.base.codecs import codecs
from harness.merge.base.expert_parameters import Place
from harness.merge.base.index import Index, index_for
from harness.merge.base.names import expert_module, kind_of, layer_of
from harness.merge.base.weight import QuantisedSource, Weight
from harness.merge.errors import UncoveredTargetsError, UnsupportedAdapterError, UsageError, counted, listed
from harness.merge.files.any_path import AnyPath, as_paths
from harness.merge.plan.ancestry import ancestry_notes
from harness.merge.plan.coverage import check_coverage
from harness.merge.plan.full_tensors import claim_bias, claim_rest, missing_biases, resized_by, weight_of
from harness.merge.plan.garbage import collection_paused
from harness.merge.plan.lora_targets import Match, Matcher
from harness.merge.plan.merge_plan import (
    DTYPE_NAMES,
    AdapterPart,
    Contribution,
    DtypeName,
    MergePlan,
    PlanRow,
    Region,
    TensorContribution,
    Term,
)
from harness.merge.plan.regions import Claim, regions_of
from harness.merge.plan.tied_embeddings import settle_vocabulary


def _claims(match: Match, contribution: int) -> list[Claim]:
    """Return everything that a matched pair adds to."""
    if match.parameter is None:
        placed: list[tuple[Place, int | None]] = [(place, None) for place in match.places]
        columns = match.columns
    else:
        count, columns = match.parameter.num_experts, match.parameter.columns
        placed = [(place, expert) for expert in range(count) for place in match.parameter.places(expert)]
    return [
        Claim(
            key=place.key,
            start=place.start,
            rows=place.rows,
            columns=columns,
            term=Term(contribution=contribution, expert=expert, offset=place.offset),
            action="add",
        )
        for place, expert in placed
    ]


class _Planner:
    """What is gathered over all adapters."""

    def __init__(self, index: Index, adapters: Sequence[Adapter]) -> None:
        self.index = index
        self.contributions: list[Contribution] = []
        self.claims: list[Claim] = []
        self.parts: list[AdapterPart] = []
        self.reached: list[frozenset[str]] = []
        self.notes: list[str] = []
        self.resized: dict[str, tuple[int, ...]] = {}
        for adapter in adapters:
            self.resized |= resized_by(index, adapter)

    def add(self, adapter: Adapter, weight: float, io_layout: IoLayout | None, b_packing: BPacking | None) -> None:
        """Match one adapter and take its claims up."""
        position, config = len(self.parts), adapter.config
        matcher = Matcher(self.index, adapter, self.resized)
        matches = [matcher.match(pair) for pair in adapter.pairs]
        fused = [(match.pair.module, match.layouts) for match in matches if match.parameter is not None]
        layout: Decision | None = None
        packing: Decision | None = None
        if fused:
            recorded = self.index.family.recorded_layout(config.peft_version)
            layout = decide_io_layout(fused, peft_version=config.peft_version, recorded=recorded, flag=io_layout)
            packing = decide_b_packing(config.lora_B_layout, b_packing)
        mine: list[Claim] = []
        for match in matches:
            contribution = matcher.contribution(match, position, weight, layout, packing)
            self.contributions.append(contribution)
            mine += _claims(match, len(self.contributions) - 1)
            if match.pair.bias is not None:
                bias = TensorContribution(
                    module=match.pair.module,
                    role="lora_B bias",
                    info=match.pair.bias,
                    adapter=position,
                    scaling=contribution.scaling,
                )
                self.contributions.append(bias)
                mine.append(claim_bias(self.index, match, len(self.contributions) - 1))
        mine += claim_rest(self.index, adapter, position, self.contributions, self.resized)
        self.claims += mine
        self.reached.append(frozenset(stem for match in matches for stem in match.stems))
        self.parts.append(AdapterPart(adapter=adapter, weight=weight, io_layout=layout, b_packing=packing))

    def check_complete(self) -> None:
        """Prove that each adapter holds what its own configuration names, and keep what is worth a note."""
        for position, (part, reached) in enumerate(zip(self.parts, self.reached, strict=True)):
            mine = [claim for claim in self.claims if self.contributions[claim.term.contribution].adapter == position]
            self._check_rest(part.adapter, mine)
            self.notes += [*part.adapter.config.notes, *check_coverage(self.index, part.adapter, reached)]

    def _check_rest(self, adapter: Adapter, claims: list[Claim]) -> None:
        """Prove that biases, trained tokens and fully trained modules that the configuration names are in the file."""
        config = adapter.config
        if lost := missing_biases(self.index, adapter, {claim.key for claim in claims}):
            raise UncoveredTargetsError(
                f"the adapter has bias = {config.bias!r}, but not the trained biases: {listed(lost)}.",
                "PEFT up to 0.20 does not save them with lora_only, so they are lost. If they were not trained after"
                " all, set bias"
                ' to "none" in adapter_config.json.',
            )
        if config.trainable_token_indices and not adapter.tokens:
            raise UncoveredTargetsError("the adapter's trainable_token_indices name tokens, and the file holds none.")
        modules = {tensor.path.rpartition(".")[0] for tensor in adapter.full}
        held = {name for module in modules for name in names_within(module, config.modules_to_save)}
        if absent := config.modules_to_save - held:
            raise UncoveredTargetsError(
                f"the adapter's modules_to_save names modules that the file does not hold: {listed(absent)}.",
                "The adapter is incomplete; save or download it again.",
            )

    def row(self, weight: Weight, regions: tuple[Region, ...], dtype: DtypeName | None) -> PlanRow:
        """Return the plan's row for one output tensor."""
        key = weight.key
        named = self.index.in_memory(key)
        single = expert_module(self.index.common(named).removesuffix(".weight"))
        convert = dtype is not None and (bool(regions) or isinstance(weight.source, QuantisedSource))
        return PlanRow(
            key=key,
            shard=weight.shard,
            kind=kind_of(named),
            layer=layer_of(named),
            expert=single[1] if single else None,
            shape=self.resized.get(key, weight.shape),
            dtype=DTYPE_NAMES[dtype] if convert and dtype is not None else weight.dtype,
            source=None if key in self.resized else weight.source,
            regions=regions,
        )


def _weights_of(adapters: Sequence[Adapter], weights: Sequence[float] | None) -> list[float]:
    """Return the weight of each adapter, 1 where none is given.

    Raises:
        UsageError: another number of weights than adapters, or one that is not finite.
        UnsupportedAdapterError: a weight for something that is not a delta.
    """
    if weights is None:
        return [1.0] * len(adapters)
    if len(weights) != len(adapters):
        raise UsageError(
            f"{counted(len(adapters), 'adapter was', 'adapters were')} given, and {counted(len(weights), 'weight')}.",
            "Give a weight for each adapter, in the same order, or none.",
        )
    # The comparison holds for integers of any size, and NaN and infinity fail it.
    if not all(abs(weight) <= sys.float_info.max for weight in weights):
        raise UsageError(f"a weight has to be a finite number; these were given: {str(list(weights))[:200]}.")
    for adapter, weight in zip(adapters, weights, strict=True):
        if weight != 1 and (adapter.full or adapter.tokens or adapter.config.use_dora):
            raise UnsupportedAdapterError(
                f"the adapter {adapter.root.name} holds DoRA, trained tokens or whole tensors, which have no weight"
                f" ({weight:g} was given)."
            )
    return [float(weight) for weight in weights]


BaseAs = Literal["original", "quantized"]


def _check_base(index: Index, base_as: BaseAs | None, quantization: str | None) -> str | None:
    """Return the formats that the base is quantised in, None for a plain one, held against what the user said.

    Raises:
        UsageError: the base is not what was said.
    """
    known = {name for codec in codecs().values() for name in codec.FORMATS} | codecs().keys()
    if quantization is not None and quantization not in known:
        raise UsageError(f"unknown quantization {str(quantization)[:80]!r}.", f"Known: {', '.join(sorted(known))}.")
    quantised = [
        weight.source for weight in index.weights.by_key.values() if isinstance(weight.source, QuantisedSource)
    ]
    found = {str(source.options.get("codes", source.codec)) for source in quantised}
    told = ", ".join(sorted(found)) or None
    if base_as == "original" and found:
        raise UsageError(
            f"the base is stored quantised ({told}), so the deltas cannot go onto the original.",
            "Give the directory of the 16-bit original as --base.",
        )
    if (base_as == "quantized" or quantization is not None) and not found:
        raise UsageError(
            "the base is not quantised, and how it was quantised for training is not simulated here.",
            "Save the quantised model with save_pretrained and give that directory as --base.",
        )
    if quantization is not None and quantization not in found | set(index.weights.formats):
        raise UsageError(f"the base is quantised as {told}, not as {quantization}.")
    return told


@collection_paused()
def plan_merge(
    base: AnyPath,
    adapter: AnyPath | Sequence[AnyPath],
    *,
    weights: Sequence[float] | None = None,
    io_layout: IoLayout | None = None,
    b_packing: BPacking | None = None,
    dtype: DtypeName | None = None,
    base_as: BaseAs | None = None,
    quantization: str | None = None,
) -> MergePlan:
    """Plan a merge from headers and configurations; reads no tensor data and needs no torch.

    Args:
        base: directory of the base checkpoint (safetensors).
        adapter: directory of a PEFT LoRA adapter, or several. Deltas of several add up, as in PEFT's
            ``merge_and_unload(adapter_names=[…])``.
        weights: what each adapter's deltas are multiplied by, 1 by default; as PEFT's ``add_weighted_adapter`` with
            ``combination_type="cat"`` means it.
        io_layout: settles the io layout where the shapes leave it open; see ``harness.merge.adapter.layout``.
        b_packing: overrides how lora_B is packed.
        dtype: what the tensors that change are written as; by default each keeps its own, and dequantised ones get
            config.json's.
        base_as: which base the deltas go onto: ``original``, a base that is stored in 16 or 32 bits, or ``quantized``,
            the values that a quantised base decodes to, which are what a QLoRA saw in training. By default what the
            base is; a base that is not what is said here is refused.
        quantization: the format that the base is expected to be in (a name in ``harness.merge.base.codecs``, or
            bitsandbytes' ``nf4``, ``fp4``, ``int8``); refused if it is not.

    Raises:
        MergeError: one of its subclasses, each of which says what to do; the inputs are only read.
    """
    adapters = [open_adapter(path) for path in as_paths(adapter)]
    if not adapters:
        raise UsageError("no adapter was given.")
    index = index_for(open_checkpoint(Path(base)), (pair.module for one in adapters for pair in one.pairs))
    found = _check_base(index, base_as, quantization)
    planner = _Planner(index, adapters)
    for lora, weight in zip(adapters, _weights_of(adapters, weights), strict=True):
        planner.add(lora, weight, io_layout, b_packing)
    vocabulary = settle_vocabulary(index, planner.claims, planner.resized)
    by_key: dict[str, list[Claim]] = {}
    for claim in (*planner.claims, *vocabulary.claims):
        by_key.setdefault(claim.key, []).append(claim)
    rows = [
        planner.row(weight_of(index, key), regions_of(claims, planner.contributions), dtype)
        for key, claims in by_key.items()
    ]
    planner.check_complete()
    plain = {weight.key: weight for weight in vocabulary.new}
    plain |= {key: weight for key, weight in index.weights.by_key.items() if isinstance(weight.source, QuantisedSource)}
    conversions = [planner.row(weight, (), dtype) for key, weight in plain.items() if key not in by_key]
    config: dict[str, object] = dict(vocabulary.config)
    if found is not None:
        config["quantization_config"] = None
    return MergePlan(
        base=index.base,
        parts=tuple(planner.parts),
        contributions=tuple(planner.contributions),
        rows=_in_file_order(index, rows),
        conversions=_in_file_order(index, conversions),
        dropped=index.weights.dropped,
        config=config,
        base_as="original" if found is None else "quantized",
        quantization=found,
        dtype=dtype,
        notes=(
            *_repeated(adapters),
            *index.notes,
            *ancestry_notes(index.base.root, adapters),
            *planner.notes,
            *vocabulary.notes,
        ),
    )


def _repeated(adapters: Sequence[Adapter]) -> list[str]:
    """Return a note for each adapter that is given more than once.

    Its delta is added as often, which is seldom meant.
    """
    counts = Counter(adapter.root for adapter in adapters)
    return [
        f"the adapter {root.name} is given {count} times, so its deltas are added {count} times"
        for root, count in counts.items()
        if count > 1
    ]


def _in_file_order(index: Index, rows: Sequence[PlanRow]) -> tuple[PlanRow, ...]:
    """Return rows in the order in which their tensors, or the first of several, lie in the shards; new ones last."""
    positions: Mapping[str, int] = {key: number for number, key in enumerate(_all_keys(index))}

    def position(row: PlanRow) -> tuple[int, int, str]:
        first = row.key if row.key in positions else next(iter(row.source.keys if row.source else ()), "")
        return row.shard, positions.get(first, len(positions)) + (row.key not in positions) * len(positions), row.key

    return tuple(sorted(rows, key=position))


def _all_keys(index: Index) -> list[str]:
    return [key for shard in index.base.shards for key in shard.tensors]
