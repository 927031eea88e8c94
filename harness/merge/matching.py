"""Where each lora pair belongs in the base: a fused expert parameter, the Linear of one expert, or any other Linear.

Every shape is checked here, against the pair's own. What a pair does to the bytes follows in ``plan``, once the layout of the whole adapter is
decided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harness.merge.adapter import FLOAT_DTYPES, Adapter, LoraPair
from harness.merge.checkpoint import Checkpoint
from harness.merge.errors import (
    AdapterMismatchError,
    MalformedAdapterError,
    UnsupportedAdapterError,
    UnsupportedBaseError,
    listed,
)
from harness.merge.layout import Decision, IoLayout, parameter_readings
from harness.merge.names import PARTS, ExpertKeys, expert_keys, expert_module, fused_module, locate, split
from harness.merge.patterns import names_suffix, pattern_value
from harness.merge.records import PairUse
from harness.merge.stacks import Place, Stack, read_stack

NOT_THIS_BASE = "Check that the adapter was trained on this base model."


@dataclass(frozen=True, kw_only=True)
class Match:
    """Where one pair belongs. ``stems`` are the Linears it changes, without the text prefix. For a fused parameter ``stack`` is set and the places are worked out once the layout is known."""

    pair: LoraPair
    name: str
    stems: tuple[str, ...]
    stack: Stack | None = None
    layouts: frozenset[IoLayout] = frozenset()
    places: tuple[Place, ...] = ()
    columns: int = 0


class Matcher:
    """The base's keys, indexed once, and the three ways to match a pair."""

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        self.base = base
        self.config = adapter.config
        self.experts: Mapping[str, ExpertKeys] = expert_keys(base.shard_of)
        self.stacks: dict[tuple[str, str], Stack | None] = {}

    def stack(self, path: str, parameter: str) -> Stack | None:
        """Return one expert parameter of the module at ``path``, its dtypes checked; read once."""
        if (path, parameter) not in self.stacks:
            stored = self.experts[path]
            keys = [stored.fused[parameter]] if parameter in stored.fused else []
            keys += [key for part in PARTS[parameter] for key in stored.linears.get(part, {}).values()]
            for key in keys:
                self.check_dtype(key)
            self.stacks[path, parameter] = read_stack(self.base, path, stored, parameter)
        return self.stacks[path, parameter]

    def check_dtype(self, key: str) -> None:
        """Refuse a tensor that is not stored as plain floating-point weights."""
        dtype = self.base.info(key).dtype
        if dtype in FLOAT_DTYPES and f"{key}_scale_inv" not in self.base:
            return
        method = self.base.config.get("quantization_config")
        named = f" (quant_method {str(method.get('quant_method'))[:40]})" if isinstance(method, dict) else ""
        raise UnsupportedBaseError(
            f"{key} is stored as {dtype}{named}; deltas are merged into {', '.join(FLOAT_DTYPES)} weights only.",
            "Merge into the 16-bit original of this model.",
        )

    def match(self, pair: LoraPair) -> Match:
        """Return where a pair belongs.

        Raises:
            AdapterMismatchError: nowhere, or its shapes do not fit there.
        """
        leaf = pair.module.rpartition(".")[2]
        if leaf in {"lm_head", "embed_tokens"} and self.base.ties_word_embeddings:
            raise UnsupportedAdapterError(
                f"the adapter targets {pair.module}, whose weight is tied to the other end of the model"
                " (tie_word_embeddings); merging into one would change both."
            )
        if (path := fused_module(pair.module)) is not None:
            return self.match_fused(pair, path)
        if (named := expert_module(pair.module)) is not None:
            return self.match_expert(pair, *named)
        return self.match_linear(pair)

    def locate_experts(self, pair: LoraPair, path: str) -> str:
        """Return where the experts module at ``path`` in memory is on disk."""
        found = locate(path, self.experts.__contains__)
        if found is None:
            raise AdapterMismatchError(
                f"the base has no experts at {path}, which the adapter's {pair.module} needs.", NOT_THIS_BASE
            )
        return found

    def match_fused(self, pair: LoraPair, path: str) -> Match:
        """Match a wrapper of a fused parameter: which parameter, its shapes say, and the configuration must agree."""
        found = self.locate_experts(pair, path)
        stacks = {name: stack for name in PARTS if (stack := self.stack(found, name)) is not None}
        shapes = {name: (stack.out_features, stack.in_features) for name, stack in stacks.items()}
        readings = parameter_readings(pair.features, shapes)
        parameters = {name for name, _ in readings}
        if not parameters:
            told = ", ".join(f"{name} (out, in) = {shape}" for name, shape in shapes.items())
            raise AdapterMismatchError(f"{pair.module}: {pair.shapes} fits none of {told}.", NOT_THIS_BASE)
        if len(parameters) > 1:
            raise AdapterMismatchError(f"{pair.module}: {pair.shapes} fits more than one of {shapes}.")
        (parameter,) = parameters
        targeted = self.config.target_parameters
        if targeted and not names_suffix(f"{path}.{parameter}", targeted):
            raise MalformedAdapterError(
                f"{pair.module}: {pair.shapes} can only be {parameter}, which target_parameters ({listed(targeted)}) does not name."
            )
        stack = stacks[parameter]
        if pair.columns % stack.num_experts:
            raise AdapterMismatchError(
                f"{pair.module}: {pair.shapes} cannot be shared by the {stack.num_experts} experts of the base.",
                NOT_THIS_BASE,
            )
        parts = split(found)
        stem = parts[1] if parts else found
        return Match(
            pair=pair,
            name=f"{path}.{parameter}",
            stack=stack,
            layouts=frozenset(layout for _, layout in readings),
            stems=tuple(f"{stem}.{expert}.{part}" for expert in range(stack.num_experts) for part in stack.parts),
        )

    def match_expert(self, pair: LoraPair, path: str, expert: int, leaf: str) -> Match:
        """Match the Linear of one expert, stored as itself or as a slice of a fused parameter."""
        found = self.locate_experts(pair, path)
        parameter = next((name for name, parts in PARTS.items() if leaf in parts), None)
        stack = self.stack(found, parameter) if parameter else None
        if stack is None or expert >= stack.num_experts:
            raise AdapterMismatchError(f"the base has no {pair.module}.", NOT_THIS_BASE)
        places = tuple(stack.places(expert, leaf))
        self.check_features(pair, (places[0].rows, stack.in_features), places[0].key)
        parts = split(f"{found}.{expert}.{leaf}")
        stem = parts[1] if parts else f"{found}.{expert}.{leaf}"
        return Match(pair=pair, name=pair.module, stems=(stem,), places=places, columns=stack.in_features)

    def match_linear(self, pair: LoraPair) -> Match:
        """Match any other Linear (or 2D parameter, which PEFT treats alike: ``ParamWrapper._get_in_out_features``)."""
        found = locate(pair.module, lambda path: f"{path}.weight" in self.base)
        if found is None:
            raise AdapterMismatchError(
                f"the base has no {pair.module}.weight, which the adapter covers.", NOT_THIS_BASE
            )
        key = f"{found}.weight"
        self.check_dtype(key)
        shape = self.base.info(key).shape
        if len(shape) != 2:  # noqa: PLR2004 - (out, in)
            raise AdapterMismatchError(f"{key} has shape {list(shape)}; a LoRA pair needs a matrix.", NOT_THIS_BASE)
        self.check_features(pair, (shape[0], shape[1]), key)
        parts = split(found)
        as_parameter = f"{pair.module}.weight"
        return Match(
            pair=pair,
            name=as_parameter if names_suffix(as_parameter, self.config.target_parameters) else pair.module,
            stems=(parts[1] if parts else found,),
            places=(Place(key=key, start=0, rows=shape[0], offset=0),),
            columns=shape[1],
        )

    def check_features(self, pair: LoraPair, shape: tuple[int, int], key: str) -> None:
        """Refuse a pair whose features are not (in, out) of the (out, in) weight it covers."""
        if pair.features != (shape[1], shape[0]):
            raise AdapterMismatchError(
                f"{pair.module}: {pair.shapes} does not fit {key} with (out, in) = {shape}.", NOT_THIS_BASE
            )

    def use(self, match: Match, io_layout: Decision | None, b_packing: Decision | None) -> PairUse:
        """Return how a matched pair is read: its rank from its shapes, its scale by PEFT's rule (``LoraModel._create_and_replace``).

        Raises:
            MalformedAdapterError: the rank in the shapes is not the configured one, so the scale cannot be trusted.
        """
        num_experts = match.stack.num_experts if match.stack else None
        rank = match.pair.columns // (num_experts or 1)
        configured = pattern_value(self.config.rank_pattern, match.name, self.config.r)
        if rank != configured:
            raise MalformedAdapterError(
                f"{match.pair.module}: {match.pair.shapes} has rank {rank}, but adapter_config.json says {configured:g}"
                f" for {match.name}{f' with {num_experts} experts' if num_experts else ''}.",
                "The configuration does not belong to these weights, or the base has another number of experts.",
            )
        alpha = pattern_value(self.config.alpha_pattern, match.name, self.config.lora_alpha)
        return PairUse(
            pair=match.pair,
            name=match.name,
            rank=rank,
            scaling=alpha / math.sqrt(rank) if self.config.use_rslora else alpha / rank,
            num_experts=num_experts,
            swapped=num_experts is not None and io_layout is not None and io_layout.value == "swapped",
            grouped_by_expert=num_experts is not None
            and b_packing is not None
            and b_packing.value == "grouped_by_expert",
        )
