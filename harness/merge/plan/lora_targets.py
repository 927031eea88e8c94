"""Where each lora pair belongs in the base: a fused expert parameter, one expert's Linear, an embedding, another
Linear.

Every shape is checked here, against the pair's own. What a pair does to the bytes follows in ``planner``, once the
layout of the whole adapter is decided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.merge.adapter.adapter import Adapter, LoraPair
from harness.merge.adapter.layout import Decision, IoLayout, parameter_readings
from harness.merge.adapter.patterns import names_suffix
from harness.merge.base.expert_parameters import ExpertParameter, Place
from harness.merge.base.index import Index
from harness.merge.base.names import PARAMETER_OF, expert_module, fused_module, fused_parameter
from harness.merge.base.weight import Weight
from harness.merge.errors import (
    AdapterMismatchError,
    MalformedAdapterError,
    UnsupportedAdapterError,
    UnsupportedBaseError,
    UsageError,
    listed,
)
from harness.merge.plan.merge_plan import PairContribution

NOT_THIS_BASE = "Check that the adapter was trained on this base model."


@dataclass(frozen=True, kw_only=True)
class Match:
    """Where one pair belongs.

    Attributes:
        pair: the pair.
        name: what PEFT's patterns see.
        stems: the Linears it changes, in the common spelling.
        parameter: the fused parameter, None where it is something else.
        layouts: which io layouts its shapes allow, for a fused parameter.
        places: what it covers, for anything else.
        columns: the length of a row there.
        swapped: whether the weight is stored the other way round there (Conv1D, embeddings).
        bias: the bias that goes with a Linear's weight.
    """

    pair: LoraPair
    name: str
    stems: tuple[str, ...]
    parameter: ExpertParameter | None = None
    layouts: frozenset[IoLayout] = frozenset()
    places: tuple[Place, ...] = ()
    columns: int = 0
    swapped: bool = False
    bias: Weight | None = None


LARGEST_SCALE = 3.4e38
"""What sums in float32 can be scaled by."""


class Matcher:
    """One adapter against the base.

    Args:
        index: the base.
        adapter: the adapter.
        resized: output shapes of weights that the adapter replaces by larger or smaller ones, by key.
    """

    def __init__(self, index: Index, adapter: Adapter, resized: dict[str, tuple[int, ...]]) -> None:
        self.index = index
        self.config = adapter.config
        self.resized = resized

    def match(self, pair: LoraPair) -> Match:
        """Return where a pair belongs.

        Raises:
            AdapterMismatchError: nowhere, or its shapes do not fit there.
        """
        parameter_name = fused_parameter(self.index.common(f"{pair.module}.weight"))
        if parameter_name is not None:
            return self.match_fused(pair, *parameter_name, name=f"{pair.module}.weight")
        if (path := fused_module(pair.module)) is not None:
            return self.match_fused(pair, self.index.common(path), None, name=path)
        if expert_module(self.index.common(pair.module)) is not None:
            return self.match_expert(pair)
        return self.match_linear(pair)

    def expert_parameters(self, pair: LoraPair, path: str) -> dict[str, ExpertParameter]:
        """Return the expert parameters at a path in the common spelling."""
        found = self.index.expert_parameters(path)
        if not found:
            raise AdapterMismatchError(
                f"the base has no experts at {path}, which the adapter's {pair.module} needs.", NOT_THIS_BASE
            )
        return found

    def refuse_extras(self, pair: LoraPair) -> None:
        """Refuse what PEFT refuses on a fused parameter (``lora.layer.ParamWrapper.__init__``), in its words."""
        for there, said in (
            (self.config.use_dora or pair.magnitude is not None, "use_dora=True"),
            (self.config.lora_bias or pair.bias is not None, "lora_bias=True"),
            (self.config.fan_in_fan_out, "fan_in_fan_out"),
        ):
            if there:
                raise UnsupportedAdapterError(f"{pair.module}: lora.ParamWrapper does not work with {said}.")

    def match_fused(self, pair: LoraPair, path: str, parameter_name: str | None, *, name: str) -> Match:
        """Match a wrapper of a fused parameter: which parameter, its shapes say, and the configuration must agree."""
        self.refuse_extras(pair)
        held = self.expert_parameters(pair, path)
        shapes = {
            key: (one.out_features, one.in_features) for key, one in held.items() if parameter_name in {None, key}
        }
        readings = parameter_readings(pair.features, shapes)
        recorded = self.index.family.recorded_layout(self.config.peft_version)
        if recorded is not None and len({key for key, _ in readings}) > 1:
            # Where experts have no gate, up and down are each other's transpose; the PEFT that made it tells which.
            readings = frozenset(it for it in readings if self.named(it[1]) == recorded)
        parameter_names = {key for key, _ in readings}
        if not parameter_names:
            told = ", ".join(f"{key} (out, in) = {shape}" for key, shape in shapes.items())
            raise AdapterMismatchError(f"{pair.module}: {pair.shapes} fits none of {told}.", NOT_THIS_BASE)
        if len(parameter_names) > 1:
            raise AdapterMismatchError(f"{pair.module}: {pair.shapes} fits more than one of {shapes}.")
        (found,) = parameter_names
        seen = name if parameter_name is not None else f"{name}.{found}"
        targeted = self.config.target_parameters
        if targeted and not names_suffix(seen, targeted):
            raise MalformedAdapterError(
                f"{pair.module}: {pair.shapes} can only be {found}, which target_parameters ({listed(targeted)}) does"
                " not name."
            )
        parameter = held[found]
        if pair.columns % parameter.num_experts:
            raise AdapterMismatchError(
                f"{pair.module}: {pair.shapes} cannot be shared by the {parameter.num_experts} experts of the base.",
                NOT_THIS_BASE,
            )
        layouts = {self.named(faces) for _, faces in readings}
        return Match(
            pair=pair,
            name=seen,
            parameter=parameter,
            layouts=frozenset(layouts),
            stems=tuple(
                f"{path}.{expert}.{part}" for expert in range(parameter.num_experts) for part in parameter.parts
            ),
        )

    def named(self, faces: IoLayout) -> IoLayout:
        """Return what PEFT calls the layout in which lora_A faces the input (``standard``) or the output, for this
        family.
        """
        if self.index.family.standard_faces_input:
            return faces
        return "swapped" if faces == "standard" else "standard"

    def match_expert(self, pair: LoraPair) -> Match:
        """Match the Linear of one expert, stored as itself or as a slice of a fused parameter."""
        stem = self.index.common(pair.module)
        path, expert, leaf = expert_module(stem) or ("", 0, "")
        parameter = self.expert_parameters(pair, path).get(PARAMETER_OF.get(leaf, ""))
        if parameter is None or expert >= parameter.num_experts:
            raise AdapterMismatchError(f"the base has no {pair.module}.", NOT_THIS_BASE)
        places = tuple(parameter.places(expert, leaf))
        self.check_features(pair, (places[0].rows, parameter.in_features), places[0].key)
        return Match(
            pair=pair,
            name=pair.module,
            stems=(stem,),
            places=places,
            columns=parameter.in_features,
            bias=self.index.find(f"{pair.module}.bias") if pair.bias else None,
        )

    def match_linear(self, pair: LoraPair) -> Match:
        """Match any other weight matrix.

        A 2D parameter is one too, and PEFT treats it alike: ``ParamWrapper._get_in_out_features``.
        """
        weight = self.index.find(f"{pair.module}.weight")
        if weight is None and (done := self.index.joined(f"{pair.module}.weight")) is not None:
            raise UnsupportedBaseError(
                f"{pair.module}.weight is not stored by itself ({done}); deltas are merged only into weights that are."
            )
        if weight is None:
            raise AdapterMismatchError(
                f"the base has no {pair.module}.weight, which the adapter covers.", NOT_THIS_BASE
            )
        self.index.check_dtype(weight)
        shape = self.resized.get(weight.key, weight.shape)
        if len(shape) != 2:  # noqa: PLR2004 - (out, in)
            raise AdapterMismatchError(
                f"{weight.key} has shape {list(shape)}; a LoRA pair needs a matrix.", NOT_THIS_BASE
            )
        if pair.embedding:
            if pair.magnitude is not None:
                raise UnsupportedAdapterError(f"{pair.module}: DoRA on an embedding is not merged by this engine.")
            swapped = True  # the weight is (vocabulary, features), lora_embedding_A (r, vocabulary)
        else:
            swapped = self.is_conv1d(pair, (shape[0], shape[1]))
        self.check_features(pair, (shape[1], shape[0]) if swapped else (shape[0], shape[1]), weight.key)
        as_parameter = f"{pair.module}.weight"
        return Match(
            pair=pair,
            name=as_parameter if names_suffix(as_parameter, self.config.target_parameters) else pair.module,
            stems=(self.index.common(pair.module),),
            places=(Place(key=weight.key, start=0, rows=shape[0], offset=0),),
            columns=shape[1],
            swapped=swapped,
            bias=self.index.find(f"{pair.module}.bias") if pair.bias else None,
        )

    def is_conv1d(self, pair: LoraPair, shape: tuple[int, int]) -> bool:
        """Return whether the weight is stored (in, out): the family says so, or the adapter's fan_in_fan_out and the
        shapes do.

        PEFT corrects the flag to what each module is as it goes (``lora.model.LoraModel._create_new_module``), so the
        saved one is that of the last module and no proof for the others.
        """
        if pair.module.rpartition(".")[2] in self.index.family.conv1d:
            return True
        if not self.config.fan_in_fan_out or pair.features == (shape[1], shape[0]):
            if self.config.fan_in_fan_out and shape[0] == shape[1] and not self.index.family.conv1d:
                raise UnsupportedAdapterError(
                    f"{pair.module} is square and the adapter has fan_in_fan_out, but nothing says whether this model"
                    " type stores it"
                    " transposed."
                )
            return False
        return True

    def check_features(self, pair: LoraPair, shape: tuple[int, int], key: str) -> None:
        """Refuse a pair whose features are not (in, out) of the (out, in) weight it covers."""
        if pair.features != (shape[1], shape[0]):
            raise AdapterMismatchError(
                f"{pair.module}: {pair.shapes} does not fit {key} with (out, in) = {shape}.", NOT_THIS_BASE
            )
        for name, vector in (("bias", pair.bias), ("lora_magnitude_vector", pair.magnitude)):
            if vector is not None and vector.shape != (shape[0],):
                raise AdapterMismatchError(
                    f"{pair.module}: its {name} has shape {list(vector.shape)}, the weight {shape[0]} output features.",
                    NOT_THIS_BASE,
                )

    def contribution(
        self, match: Match, adapter: int, weight: float, io_layout: Decision | None, b_packing: Decision | None
    ) -> PairContribution:
        """Return how a matched pair is read: its rank from its shapes, its scale by PEFT's rule
        (``LoraModel._create_and_replace``).

        Args:
            match: the pair and where it belongs.
            adapter: position of the adapter in the plan.
            weight: the adapter's weight in the merge.
            io_layout: of the whole adapter.
            b_packing: of the whole adapter.

        Raises:
            MalformedAdapterError: the rank in the shapes is not the configured one, so the scale cannot be trusted.
            UsageError: the adapter's weight makes the scale infinite.
        """
        num_experts = match.parameter.num_experts if match.parameter else None
        rank = match.pair.columns // (num_experts or 1)
        configured = self.config.rank_pattern.value(match.name, self.config.r)
        if rank != configured:
            raise MalformedAdapterError(
                f"{match.pair.module}: {match.pair.shapes} has rank {rank}, but adapter_config.json says {configured:g}"
                f" for {match.name}{f' with {num_experts} experts' if num_experts else ''}.",
                "The configuration does not belong to these weights, or the base has another number of experts.",
            )
        alpha = self.config.alpha_pattern.value(match.name, self.config.lora_alpha)
        swapped = match.swapped
        if match.parameter is not None:
            faces_input = self.named("standard") == (io_layout.value if io_layout else "standard")
            # The stored matrix is (out, in), or with a transposed family (in, out): lora_B @ lora_A fits where lora_A
            # faces its columns.
            swapped = faces_input == match.parameter.transposed
        scaling = weight * (alpha / math.sqrt(rank) if self.config.use_rslora else alpha / rank)
        if not abs(scaling) <= LARGEST_SCALE:
            raise UsageError(
                f"{match.pair.module}: the weight {weight:g} times its scale, {scaling:g}, is no finite float32 number."
            )
        return PairContribution(
            pair=match.pair,
            name=match.name,
            adapter=adapter,
            rank=rank,
            scaling=scaling,
            num_experts=num_experts,
            swapped=swapped,
            grouped_by_expert=num_experts is not None
            and b_packing is not None
            and b_packing.value == "grouped_by_expert",
        )
