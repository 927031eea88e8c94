"""What a family module provides, and how one is found.

``families/<name>.py`` defines ``build(geometry, variant) -> Checkpoint``: pure data, importable without torch. Its
literals ``LAYOUT_OF`` (a published repository) and ``SHOWS`` (what is special about it) are for the documentation.
Adding a family is adding that file and its test.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from harness.worker.checkpoints.geometry import Geometry
from harness.worker.checkpoints.tensors import TensorSpec
from harness.worker.introspection.parts import Experts, Part

FAMILIES = "harness.worker.checkpoints.families"


class VariantNotOfferedError(ValueError):
    """This family has no such variant."""


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How the family's router chooses experts: needed to see how near a position is to choosing another one.

    Attributes:
        top_k: experts per token.
        scores: ``softmax`` over experts, or ``sigmoid`` of each plus a correction bias.
        n_group: groups of experts; 1 when the family does not route by groups.
        topk_group: groups kept.
    """

    top_k: int
    scores: Literal["softmax", "sigmoid"]
    n_group: int = 1
    topk_group: int = 1


@dataclass(frozen=True, kw_only=True)
class Introspected:
    """What is known of a family that no file describes, as the installed transformers has it.

    Attributes:
        model_type: its name.
        experts: where the model in memory has its routed experts.
        parts: every weight that a LoRA can cover.
        refused: name of a module → why PEFT refuses it, in its own words.
    """

    model_type: str
    experts: tuple[Experts, ...] = ()
    parts: tuple[Part, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint to be written.

    Attributes:
        config: config.json, literally as a published repository of this family has it, tiny sizes apart.
        tensors: every tensor, in the order in which they are written.
        routing: how experts are chosen.
        generation_config: generation_config.json, as published.
        layers_with_experts: indices of the layers that route.
        num_experts: routed experts of each of them.
        prefixes: prefixes of keys under which the family's repositories are found. Every release that knows the family
            loads them alike. Empty where there is one.
        shards: files that the weights lie in, dealt out one by one. One lies without an index.
        introspected: what is known of a family without a file; None of one that has one. Until it is built there is
            nothing but its name.
    """

    config: dict[str, Any]
    tensors: tuple[TensorSpec, ...]
    routing: Routing | None
    layers_with_experts: tuple[int, ...]
    num_experts: int
    generation_config: dict[str, Any] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()
    shards: int = 4
    introspected: Introspected | None = None


def build(family: str, geometry: Geometry, variant: str) -> Checkpoint:
    """Return the checkpoint of a family in a geometry: of one that has no file, its name alone.

    Raises:
        VariantNotOfferedError: the family is not published in this variant.
    """
    if importlib.util.find_spec(f"{FAMILIES}.{family}") is None:
        named = Introspected(model_type=family)
        return Checkpoint(
            config={}, tensors=(), routing=None, layers_with_experts=(), num_experts=0, introspected=named
        )
    module = importlib.import_module(f"{FAMILIES}.{family}")
    checkpoint: Checkpoint = module.build(geometry, variant)
    return replace(checkpoint, shards=geometry.shards)
