"""What the fuzz starts from: small valid inputs of every kind that the engine reads, held as bytes so that a mutation
costs no rebuild.

A seed is a base, one or two adapters and, where the audit judges such a merge, the merged checkpoint. Each is made as
the other tests make theirs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from format_samples import HIDDEN, VOCABULARY, Numbers, pair, small_base, write_adapter, write_base
from merge_samples import QUICK, Spec, build
from quantised_samples import eight_bit, four_bit, fp8, mxfp4

from harness.merge import MergeError, audit, merge, plan_merge

Q, EXPERTS, EMBED = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts", "model.embed_tokens"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Seed:
    """``files`` by path below one folder that holds ``base``, ``adapter`` ….

    ``options`` of ``plan_merge``; ``audited``: there is ``merged``.
    """

    name: str
    files: Mapping[str, bytes]
    adapters: tuple[str, ...]
    options: Mapping[str, object] = field(default_factory=dict)
    audited: bool = False


Write = Callable[[Path], Mapping[str, object]]
"""Writes ``base`` and ``adapter`` (and ``adapter2``) below a folder and returns options of ``plan_merge``."""


def _layers(**spec: object) -> Write:
    def write(folder: Path) -> Mapping[str, object]:
        build(folder, Spec(layers=1, experts=3, **spec))  # type: ignore[arg-type]  # fields by name
        return {}

    return write


def _quantised(folder: Path, tensors: Tensors, **config: object) -> None:
    numbers = Numbers(5)
    write_base(folder / "base", {**tensors, "model.norm.weight": numbers(HIDDEN).bfloat16()}, **config)
    write_adapter(folder / "adapter", pair(numbers, Q, 7, HIDDEN))


def _four_bit(folder: Path) -> Mapping[str, object]:
    nested, _ = four_bit(f"{Q}.weight", (7, HIDDEN), nested=True, blocksize=16)
    plain, _ = four_bit("model.layers.0.self_attn.o_proj.weight", (HIDDEN, 7), kind="fp4", dtype="bfloat16")
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    _quantised(folder, {**nested, **plain}, torch_dtype="bfloat16", quantization_config=settings)
    return {}


def _eight_bit(folder: Path) -> Mapping[str, object]:
    _quantised(folder, eight_bit(Q, (7, HIDDEN))[0], quantization_config={"load_in_8bit": True})
    return {"quantization": "int8", "dtype": "float32"}


def _fp8(folder: Path) -> Mapping[str, object]:
    numbers, tensors = Numbers(3), {}
    for key, shape in (
        (f"{Q}.weight", (7, HIDDEN)),
        (f"{EXPERTS}.gate_up_proj", (2, 8, HIDDEN)),
        (f"{EXPERTS}.down_proj", (2, HIDDEN, 4)),
    ):
        tensors |= fp8(key, shape, (4, 4))[0]
    settings = {"quant_method": "fp8", "weight_block_size": [4, 4]}
    write_base(folder / "base", tensors, num_experts=2, quantization_config=settings)
    lora = pair(numbers, Q, 7, HIDDEN) | pair(numbers, EXPERTS, 8, HIDDEN, 4)
    write_adapter(folder / "adapter", lora, target_parameters=["experts.gate_up_proj"])
    return {}


def _mxfp4(folder: Path) -> Mapping[str, object]:
    numbers = Numbers(4)
    blocks, scales, _ = mxfp4(2, 32, 12)
    tensors = {
        f"{EXPERTS}.gate_up_proj_blocks": blocks,
        f"{EXPERTS}.gate_up_proj_scales": scales,
        f"{EXPERTS}.gate_up_proj_bias": numbers(2, 12),
    }
    config = {"model_type": "gpt_oss", "num_local_experts": 2, "quantization_config": {"quant_method": "mxfp4"}}
    write_base(folder / "base", tensors, **config)
    lora = pair(numbers, EXPERTS, 12, 32, 4)
    write_adapter(folder / "adapter", lora, target_modules=None, target_parameters=["experts.gate_up_proj"])
    return {}


def _whole(folder: Path) -> Mapping[str, object]:
    """Trained tokens, biases and a fully trained head beside a LoRA whose lora_B has a bias."""
    numbers = Numbers(6)
    lora = pair(numbers, Q, 7, HIDDEN)
    lora |= {f"{Q}.lora_B.bias": numbers(7), "lm_head.weight": numbers(VOCABULARY, HIDDEN)}  # fmt: skip
    lora[f"{EMBED}.token_adapter.trainable_tokens_delta"] = numbers(2, HIDDEN)
    config = {"lora_bias": True, "modules_to_save": ["lm_head"], "trainable_token_indices": {"embed_tokens": [7, 3]}}
    write_base(folder / "base", small_base(numbers, bias=True))
    write_adapter(folder / "adapter", lora, **config)
    return {}


def _resized(folder: Path) -> Mapping[str, object]:
    """A tied vocabulary with four rows more, and DoRA on q_proj."""
    numbers = Numbers(7)
    lora = pair(numbers, Q, 7, HIDDEN)
    lora[f"{Q}.lora_magnitude_vector"] = numbers(7).abs() + 0.5
    lora |= {f"{EMBED}.weight": numbers(VOCABULARY + 4, HIDDEN), "lm_head.weight": numbers(VOCABULARY + 4, HIDDEN)}
    write_base(folder / "base", small_base(numbers, head=False), tie_word_embeddings=True)
    write_adapter(folder / "adapter", lora, use_dora=True)
    return {}


def _untied(folder: Path) -> Mapping[str, object]:
    """A LoRA on an embedding that is tied to the head."""
    numbers = Numbers(8)
    lora = {f"{EMBED}.lora_embedding_A": numbers(2, VOCABULARY), f"{EMBED}.lora_embedding_B": numbers(HIDDEN, 2)}
    write_base(folder / "base", small_base(numbers, head=False), tie_word_embeddings=True)
    write_adapter(folder / "adapter", lora, target_modules=["embed_tokens"])
    return {"dtype": "bfloat16"}


def _gpt2(folder: Path) -> Mapping[str, object]:
    numbers = Numbers(9)
    base = {
        "h.0.attn.c_attn.weight": numbers(6, 9),
        "h.0.attn.c_proj.weight": numbers(6, 6),
        "wte.weight": numbers(8, 6),
    }
    lora = pair(numbers, "transformer.h.0.attn.c_attn", 9, 6) | pair(numbers, "transformer.h.0.attn.c_proj", 6, 6)
    write_base(folder / "base", base, model_type="gpt2", tie_word_embeddings=True)
    write_adapter(folder / "adapter", lora, fan_in_fan_out=True, target_modules=["c_attn", "c_proj"])
    return {}


def _granitemoe(folder: Path) -> Mapping[str, object]:
    numbers, stem = Numbers(10), "model.layers.0.block_sparse_moe"
    base = {
        f"{stem}.input_linear.weight": numbers(2, 8, 6), f"{stem}.output_linear.weight": numbers(2, 6, 4),
        f"{stem}.router.layer.weight": numbers(2, 6),
    }  # fmt: skip
    lora = pair(numbers, f"{stem}.input_linear", 8, 6, 4) | pair(numbers, f"{stem}.router", 2, 6)
    write_base(folder / "base", base, model_type="granitemoe", num_local_experts=2)
    write_adapter(
        folder / "adapter", lora, target_modules=None, target_parameters=["input_linear.weight", "router.weight"]
    )
    return {}


def _several(folder: Path) -> Mapping[str, object]:
    """Two adapters of different make on one base, with weights."""
    build(folder / "one", Spec(layers=1, experts=3, disk="fused", shards=1))
    build(folder / "two", Spec(layers=1, experts=3, disk="fused", shards=1, memory="linear", rank=1, seed=0))
    (folder / "one" / "base").rename(folder / "base")
    (folder / "one" / "adapter").rename(folder / "adapter")
    (folder / "two" / "adapter").rename(folder / "adapter2")
    return {"weights": [0.5, -2]}


WRITERS: Mapping[str, Write] = {
    "per-expert": _layers(attention=True, shards=2, dtype="bfloat16"),
    "fused": _layers(
        disk="fused",
        shards=1,
        io_layout="swapped",
        peft_version="0.18.1",
        b_packing="grouped_by_expert",
        marker="grouped_by_expert",
        gate_up_rank=1,
        gate_up_alpha=7,
        use_rslora=True,
    ),
    "linears": _layers(memory="linear", disk_prefix="model.language_model.", shards=3),
    "lone-square": _layers(hidden=6, width=3, parameters=("gate_up_proj",), router=True, dense_layers=0, shared=False),
    "bnb-4bit": _four_bit,
    "bnb-8bit": _eight_bit,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "whole": _whole,
    "resized": _resized,
    "untied": _untied,
    "gpt2": _gpt2,
    "granitemoe": _granitemoe,
    "several": _several,
}


def _read(name: str, folder: Path) -> Seed:
    options = WRITERS[name](folder)
    adapters = tuple(sorted(path.name for path in folder.iterdir() if path.name.startswith("adapter")))
    plan = plan_merge(folder / "base", [folder / adapter for adapter in adapters], **options)  # type: ignore[arg-type]  # options by name
    merge(plan, folder / "merged")
    audited = len(adapters) == 1
    try:
        audited = audited and audit(folder / "base", folder / "adapter", folder / "merged").exit_code == 0
    except MergeError:
        audited = False
    wanted = ("base/", *(f"{adapter}/" for adapter in adapters), *(("merged/",) if audited else ()))
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {path: data for path, data in files.items() if path.startswith(wanted)}
    return Seed(name=name, files=files, adapters=adapters, options=options, audited=audited)


@cache
def seeds() -> tuple[Seed, ...]:
    """Every seed; each has been merged once, so it is valid."""
    found = []
    for name in WRITERS:
        with tempfile.TemporaryDirectory(dir=QUICK) as folder:
            found.append(_read(name, Path(folder)))
    return tuple(found)
