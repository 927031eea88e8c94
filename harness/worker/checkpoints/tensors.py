"""What lies on disk: one ``TensorSpec`` per tensor, and helpers that families build their lists from.

A family knows its own on-disk names. So what a tensor *is* (kind, layer, expert, role) is written down here when it is
made. It is never parsed back out of its name. That keeps the judgement of a merge independent of the merge engine's own
parsing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.worker.checkpoints.geometry import Geometry

Kind = Literal["attention", "expert", "shared_expert", "router", "dense", "embedding", "head", "other"]
Init = Literal["random", "ones", "zeros"]


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of a checkpoint.

    Attributes:
        key: its name on disk.
        shape: its shape, as ``(out, in)`` for a Linear and ``(E, out, in)`` for fused experts.
        kind: what it is part of.
        module: the in-memory module it belongs to, with ``model.`` as the prefix whatever the disk says. For a routed
            expert it is the experts module (``model.layers.1.mlp.experts``). None for what no LoRA can target.
        role: ``gate_proj`` / ``up_proj`` / ``down_proj`` / ``gate_up_proj`` for routed experts, else None.
        expert: the expert's index where experts lie apart, else None.
        bias_of: the in-memory module, a Linear, whose bias it is, else None.
        init: how it is filled. ``random`` is scaled by fan-in unless ``exponent`` says otherwise.
        exponent: standard deviation is ``1.155 * 2**-exponent``.
        offset: added to every element.
        extra: a tensor that the model does not load (multi-token prediction) and that every engine must leave alone.
        always_float32: stored in float32 whatever the checkpoint's dtype, as published router biases are.
        sources: names of the deltas of the parameters in memory that it is made of (``stages.deltas``), where that was
            found by introspection.
        draw: which of its random fillings it has.
        literal: its bytes in hexadecimal, where it is no weight: a table, or what a model computes by itself.
        stored_as: the dtype of those bytes, as torch calls it.
    """

    key: str
    shape: tuple[int, ...]
    kind: Kind = "other"
    module: str | None = None
    role: str | None = None
    expert: int | None = None
    bias_of: str | None = None
    init: Init = "random"
    exponent: int | None = None
    offset: float = 0.0
    extra: bool = False
    always_float32: bool = False
    sources: tuple[str, ...] = ()
    draw: int = 0
    literal: str | None = None
    stored_as: str | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        product = 1
        for size in self.shape:
            product *= size
        return product

    @property
    def scale_exponent(self) -> int:
        """The exponent in force: about half the bits of the fan-in. That is 1/sqrt(fan_in) without a square root."""
        return self.shape[-1].bit_length() // 2 if self.exponent is None else self.exponent


def linear(
    prefix: str, name: str, out: int, inp: int, kind: Kind, *, disk: str = "model.", extra: bool = False
) -> TensorSpec:
    """Return the weight of a Linear: ``{disk}{prefix}.{name}.weight`` of shape (out, in).

    ``prefix`` is the path below the disk prefix, as ``layers.0.self_attn``; in memory the prefix is always ``model.``.
    """
    path = f"{prefix}.{name}"
    return TensorSpec(
        key=f"{disk}{path}.weight", shape=(out, inp), kind=kind, module=None if extra else f"model.{path}", extra=extra
    )


def bias(prefix: str, name: str, out: int, kind: Kind, *, extra: bool = False) -> TensorSpec:
    """Return the bias of a Linear, (out,); ``prefix`` and ``name`` are those of ``linear``."""
    path = f"model.{prefix}.{name}"
    return TensorSpec(
        key=f"{path}.bias", shape=(out,), kind=kind, bias_of=None if extra else path, exponent=4, extra=extra
    )


def embedding(g: Geometry, *, disk: str = "model.", tied: bool = False) -> TensorSpec:
    """Return the embeddings, (V, H). Where they are the head too they are as large as one."""
    key, module = f"{disk}embed_tokens.weight", "model.embed_tokens"
    return TensorSpec(key=key, shape=(g.vocab, g.hidden), kind="embedding", module=module, exponent=2 * tied)


def head(g: Geometry) -> TensorSpec:
    """Return the head, (V, H)."""
    return TensorSpec(key="lm_head.weight", shape=(g.vocab, g.hidden), kind="head", module="lm_head", exponent=2)


def norm(key: str, size: int, *, init: Init = "ones", extra: bool = False) -> TensorSpec:
    """Return a norm's weight. It is near its neutral value, so that the model is not blind to which norm is which."""
    return TensorSpec(key=key, shape=(size,), exponent=4, offset=1.0 if init == "ones" else 0.0, extra=extra)


def mlp(
    prefix: str, intermediate: int, hidden: int, kind: Kind, *, disk: str = "model.", extra: bool = False
) -> list[TensorSpec]:
    """Return gate_proj, up_proj (intermediate, hidden) and down_proj (hidden, intermediate) of one MLP."""
    return [
        linear(prefix, "gate_proj", intermediate, hidden, kind, disk=disk, extra=extra),
        linear(prefix, "up_proj", intermediate, hidden, kind, disk=disk, extra=extra),
        linear(prefix, "down_proj", hidden, intermediate, kind, disk=disk, extra=extra),
    ]


def experts(
    layer: int,
    num_experts: int,
    intermediate: int,
    hidden: int,
    *,
    fused: bool,
    disk: str = "model.",
    extra: bool = False,
) -> list[TensorSpec]:
    """Return the routed experts of one layer, per-expert 2D (published by most families) or fused 3D.

    Fused ``gate_up_proj`` is (E, 2I, H) with the gate rows first. ``down_proj`` is (E, H, I). Fused keys have no
    ``.weight`` (transformers 5, ``Qwen3_5MoeExperts``).
    """
    path = f"layers.{layer}.mlp.experts"
    module = None if extra else f"model.{path}"
    if fused:
        shapes = {
            "gate_up_proj": (num_experts, 2 * intermediate, hidden),
            "down_proj": (num_experts, hidden, intermediate),
        }
        return [
            TensorSpec(key=f"{disk}{path}.{role}", shape=shape, kind="expert", module=module, role=role, extra=extra)
            for role, shape in shapes.items()
        ]
    shapes_2d = {
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "down_proj": (hidden, intermediate),
    }
    return [
        TensorSpec(
            key=f"{disk}{path}.{e}.{role}.weight",
            shape=shape,
            kind="expert",
            module=module,
            role=role,
            expert=e,
            extra=extra,
        )
        for e in range(num_experts)
        for role, shape in shapes_2d.items()
    ]


def router(layer: int, num_experts: int, hidden: int, *, disk: str = "model.", extra: bool = False) -> TensorSpec:
    """Return the router's weight (E, H), wide enough that top-k choices are far apart."""
    return TensorSpec(
        key=f"{disk}layers.{layer}.mlp.gate.weight",
        shape=(num_experts, hidden),
        kind="router",
        module=None if extra else f"model.layers.{layer}.mlp.gate",
        exponent=1,
        extra=extra,
    )


def prediction_layer(layer: int, g: Geometry, block: list[TensorSpec]) -> list[TensorSpec]:
    """Return a multi-token-prediction layer as GLM-4.5 and DeepSeek-V3 publish it.

    It is a decoder layer with a head of its own.

    Args:
        layer: its index, which is the number of layers that the model loads.
        g: sizes.
        block: the tensors of the decoder layer inside it.
    """
    path = f"model.layers.{layer}"
    return [
        TensorSpec(key=f"{path}.eh_proj.weight", shape=(g.hidden, 2 * g.hidden), extra=True),
        TensorSpec(key=f"{path}.embed_tokens.weight", shape=(g.vocab, g.hidden), exponent=0, extra=True),
        norm(f"{path}.enorm.weight", g.hidden, extra=True),
        norm(f"{path}.hnorm.weight", g.hidden, extra=True),
        *block,
        TensorSpec(key=f"{path}.shared_head.head.weight", shape=(g.vocab, g.hidden), exponent=2, extra=True),
        norm(f"{path}.shared_head.norm.weight", g.hidden, extra=True),
    ]
