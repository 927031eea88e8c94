"""Bases and adapters written tensor by tensor, for tests of one format or feature each.

Values are worked out by the tests themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from merge_samples import load
from safetensors.torch import save_file

from harness.merge import MergeReport, merge, plan_merge

HIDDEN, VOCABULARY = 6, 11
PREFIX = "base_model.model."


class Numbers:
    """Random tensors, each exact in float32."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> torch.Tensor:
        """Return standard normal values of this shape."""
        return torch.tensor(self.random.standard_normal(shape).astype(np.float32))


def write_base(folder: Path, tensors: Mapping[str, torch.Tensor], **config: object) -> Path:
    """Write a single-file base."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")
    settings = {"model_type": "llama", "num_hidden_layers": 1, "tie_word_embeddings": False, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps({**settings, **config}))
    return folder


def write_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], **config: object) -> Path:
    """Write an adapter whose keys are given without PEFT's prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"{PREFIX}{key}": tensor.contiguous() for key, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 3,
        "target_modules": ["q_proj"],
        "peft_version": "0.19.1",
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    return folder


def small_base(numbers: Numbers, *, bias: bool = False, head: bool = True) -> dict[str, torch.Tensor]:
    """A one-layer model: embedding, q_proj (7, 6), norm and head."""
    tensors = {
        "model.embed_tokens.weight": numbers(VOCABULARY, HIDDEN),
        "model.layers.0.self_attn.q_proj.weight": numbers(7, HIDDEN),
        "model.layers.0.input_layernorm.weight": numbers(HIDDEN),
    }
    if bias:
        tensors["model.layers.0.self_attn.q_proj.bias"] = numbers(7)
    if head:
        tensors["lm_head.weight"] = numbers(VOCABULARY, HIDDEN)
    return tensors


def pair(numbers: Numbers, module: str, out: int, wide: int, rank: int = 2) -> dict[str, torch.Tensor]:
    """lora_A and lora_B of a Linear."""
    return {f"{module}.lora_A.weight": numbers(rank, wide), f"{module}.lora_B.weight": numbers(out, rank)}


def exact(tensor: torch.Tensor) -> np.ndarray:
    """A tensor in float64."""
    return tensor.double().numpy()


def delta(tensors: Mapping[str, torch.Tensor], module: str, scaling: float = 1.5) -> np.ndarray:
    """Scaling * B A in float64; 3 / 2 is what the default configuration says."""
    return scaling * exact(tensors[f"{module}.lora_B.weight"]) @ exact(tensors[f"{module}.lora_A.weight"])


def merged(
    base: Path, adapter: Path | list[Path], out: Path, **options: object
) -> tuple[dict[str, torch.Tensor], MergeReport]:
    """Plan, merge, and load what was published."""
    report = merge(plan_merge(base, adapter, **options), out)  # type: ignore[arg-type]  # options by name
    return load(out), report


def config_of(folder: Path) -> dict[str, object]:
    """config.json of a checkpoint."""
    return dict(json.loads((folder / "config.json").read_text()))


def close(tensor: torch.Tensor, expected: np.ndarray) -> bool:
    """Whether a float32 tensor is an exact result up to a short sum in float32 and one rounding."""
    return tensor.shape == expected.shape and bool(np.allclose(exact(tensor), expected, rtol=2**-21, atol=2**-21))
