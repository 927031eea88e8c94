"""The adapters that are merged: keys, shapes and configuration as PEFT 0.19 saves them, rank 16; pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.bench.layouts import DeepseekV3, Qwen3Moe, Shape

RANK = 16
ALPHA = 32
SCALING = ALPHA / RANK
PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class AdapterLayout:
    """An adapter: its tensors, float32, and what adapter_config.json says beside them."""

    tensors: tuple[tuple[str, Shape], ...]
    target_modules: list[str] | str
    target_parameters: list[str] | None

    def config(self) -> dict[str, Any]:
        """Return adapter_config.json."""
        return {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "bias": "none",
            "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "use_rslora": False, "use_dora": False,
            "rank_pattern": {}, "alpha_pattern": {}, "target_modules": self.target_modules,
            "target_parameters": self.target_parameters, "fan_in_fan_out": False, "init_lora_weights": True,
            "modules_to_save": None, "inference_mode": True, "peft_version": "0.19.1",
        }  # fmt: skip


def _pair(module: str, rows: int, columns: int, experts: int = 1) -> Iterator[tuple[str, Shape]]:
    """Yield lora_A (E·r, in) and lora_B (out, E·r) of a module or of a fused parameter of ``experts``."""
    yield f"{PREFIX}{module}.lora_A.weight", (experts * RANK, columns)
    yield f"{PREFIX}{module}.lora_B.weight", (rows, experts * RANK)


def of_experts(base: Qwen3Moe) -> AdapterLayout:
    """Return the adapter on every expert, as PEFT trains it on fused parameters: ``gate_up_proj`` inside, ``down_proj``
    around it.
    """
    pairs = [
        pair
        for layer in range(base.layers)
        for module, rows, columns in (
            (f"model.layers.{layer}.mlp.experts.base_layer", 2 * base.width, base.hidden),
            (f"model.layers.{layer}.mlp.experts", base.hidden, base.width),
        )
        for pair in _pair(module, rows, columns, base.experts)
    ]
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return AdapterLayout(tensors=tuple(pairs), target_modules=[], target_parameters=parameters)


def of_attention(base: Qwen3Moe) -> AdapterLayout:
    """Return the adapter on the four attention projections of every layer."""
    pairs = [
        pair
        for layer in range(base.layers)
        for name, (rows, columns) in base.attention.items()
        for pair in _pair(f"model.layers.{layer}.self_attn.{name}", rows, columns)
    ]
    return AdapterLayout(tensors=tuple(pairs), target_modules=sorted(base.attention), target_parameters=None)


def of_single_experts(base: DeepseekV3) -> AdapterLayout:
    """Return the adapter with a pair for every expert's every Linear, as PEFT trains it where experts are Linears."""
    pairs = [
        pair
        for layer in range(base.dense, base.layers)
        for expert in range(base.experts)
        for name, (rows, columns) in base.expert.items()
        for pair in _pair(f"model.layers.{layer}.mlp.experts.{expert}.{name}", rows, columns)
    ]
    pattern = r".*\.mlp\.experts\.\d+\.(gate_proj|up_proj|down_proj)"
    return AdapterLayout(tensors=tuple(pairs), target_modules=pattern, target_parameters=None)
