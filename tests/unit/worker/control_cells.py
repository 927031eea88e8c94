"""A cell after its own merge, small enough to write down.

Adapter, base, deltas and trained model are real, and no library under test is used. Two experts, rank 2, H = 3, 2I = 4,
one q_proj. Deltas are made by PEFT's own formula for ``rank_major`` (peft 0.21.2, ``ParamWrapper.get_delta_weight``:
lora_B as (out, r, E), lora_A as (E, r, in), summed over r). The "model" is the matrix of all rows of all weights: every
tensor of the directory shows in its logits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from harness.worker.checkpoints.family import Checkpoint, Routing
from harness.worker.checkpoints.tensors import TensorSpec, norm
from harness.worker.checkpoints.writer import sha256_of_directory
from harness.worker.observation import Observation
from harness.worker.request import Bands, Request
from harness.worker.stages.evaluate import Sample, save_view

E, R, H, I2 = 2, 2, 3, 4
EXPERTS = "model.layers.0.mlp.experts"
Q = "model.layers.0.self_attn.q_proj"
SPECS = (
    *(
        TensorSpec(key=f"{EXPERTS}.{e}.{role}.weight", shape=(2, H), kind="expert", module=EXPERTS, role=role, expert=e)
        for e in range(E)
        for role in ("gate_proj", "up_proj")
    ),
    TensorSpec(key=f"{Q}.weight", shape=(4, H), kind="attention", module=Q),
    norm("model.layers.0.input_layernorm.weight", H),
    norm("model.norm.weight", H),
)
MATRICES = tuple(spec for spec in SPECS if len(spec.shape) == 2)
CHECKPOINT = Checkpoint(
    config={}, tensors=SPECS, routing=Routing(top_k=1, scores="softmax"), layers_with_experts=(0,), num_experts=E
)
ADAPTER = {"io_layout": "standard", "b_packing": "rank_major", "num_experts": E, "rank": R}
BANDS = Bands(
    kl_max=1e-9, logprob_max=1e-3, samples_min=1.0, signal_min=0.1, exact_min=0.5, ulp_max=1.0,
    adapter_reload_kl_max=1e-9, near_tie_epsilon=1e-5, clear_min=0.5, definition_max=1e-3, paths_max=1e-4,
)  # fmt: skip


def request_in(work: Path, **changes: Any) -> Request:
    """A cell's request; ``changes`` are fields of it."""
    fields: dict[str, Any] = {
        "family": "linear_map", "recipe": "lora", "geometry": "distinct", "variant": "published", "dtype": "float32",
        "device": "cpu", "seed": 0, "engine": "reference", "fault": None, "work": work,
        "observation": work / "observation.json", "threads": 1, "bands": BANDS,
    }  # fmt: skip
    return Request(**{**fields, **changes})


def logits_in(directory: Path) -> torch.Tensor:
    """What the "model" in a directory says to fixed prompts: (2, 3, 12) float32."""
    weights = load_file(directory / "model.safetensors")
    rows = torch.cat([weights[spec.key] for spec in MATRICES]).float()
    prompts = torch.randn(2, 3, H, generator=torch.Generator().manual_seed(7))
    return prompts @ rows.T


def samples_in(directory: Path) -> list[Sample]:
    """The most likely token of each prompt, as a sample of one token."""
    best = logits_in(directory)[:, -1].log_softmax(-1).topk(2)
    return [
        Sample(tokens=[int(token)], margins=[float(pair[0] - pair[1])])
        for token, pair in zip(best.indices[:, 0], best.values, strict=True)
    ]


def make_cell(work: Path) -> Observation:
    """Write base, adapter, deltas, the right merge and what the trained model said.

    Return what the cell has seen so far.
    """
    generator = torch.Generator().manual_seed(3)
    base = {spec.key: torch.randn(spec.shape, generator=generator) for spec in SPECS}
    lora_a, lora_b = torch.randn(E * R, H, generator=generator), torch.randn(I2, E * R, generator=generator)
    q_a, q_b = torch.randn(R, H, generator=generator), torch.randn(4, R, generator=generator)
    fused = torch.einsum("ore,eri->eoi", lora_b.double().reshape(I2, R, E), lora_a.double().reshape(E, R, H))
    deltas = {f"{EXPERTS}:gate_up_proj": 2.0 * fused, Q: 2.0 * q_b.double() @ q_a.double()}
    for name in ("base", "adapter"):
        (work / name).mkdir()
    save_file(base, work / "base" / "model.safetensors", metadata={"format": "pt"})
    (work / "base" / "tokenizer_config.json").write_text("{}")
    save_file(deltas, work / "deltas.safetensors")
    save_file(
        {
            f"p.{pair}.lora_{part}.weight": tensor
            for pair, part, tensor in (
                ("experts", "A", lora_a),
                ("experts", "B", lora_b),
                ("q", "A", q_a),
                ("q", "B", q_b),
            )
        },
        work / "adapter" / "adapter_model.safetensors",
    )
    # Alpha and rank are those of other targets: what a pair is scaled by is PEFT's to say.
    (work / "adapter" / "adapter_config.json").write_text(json.dumps({"lora_alpha": 9, "r": R}))
    (work / "pairs.json").write_text(json.dumps({"p.experts": f"{EXPERTS}:gate_up_proj", "p.q": Q}))
    (work / "scalings.json").write_text(json.dumps({"p.experts": 2.0, "p.q": 2.0}))
    right = {spec.key: base[spec.key] for spec in SPECS}
    for spec in MATRICES:
        delta = deltas[Q] if spec.expert is None else deltas[f"{EXPERTS}:gate_up_proj"][spec.expert]
        rows = {None: slice(None), "gate_proj": slice(0, 2), "up_proj": slice(2, 4)}[spec.role]
        right[spec.key] = (base[spec.key].double() + delta[rows]).float()
    (work / "merged").mkdir()
    save_file(right, work / "merged" / "model.safetensors", metadata={"format": "pt"})
    (work / "merged" / "tokenizer_config.json").write_text("{}")
    trained = {
        "logits": logits_in(work / "merged"), "base_logits": logits_in(work / "base"), "gaps": torch.full((2, 3), 1.0),
    }  # fmt: skip
    save_view(work, "trained", trained, samples_in(work / "merged"))
    observation = Observation(work / "observation.json")
    observation.data |= {"adapter": dict(ADAPTER), "base_sha256": sha256_of_directory(work / "base")}
    return observation
