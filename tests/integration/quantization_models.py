"""Models and settings for the programs that quantise fused experts in a stack's environment."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

SIZES = {"hidden": 64, "intermediate": 128, "experts": 4}


def tiny(**sizes: int) -> Path:
    """Write a qwen3_moe of given sizes with transformers itself."""
    wanted = {**SIZES, **sizes}
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            hidden_size=wanted["hidden"], intermediate_size=64, moe_intermediate_size=wanted["intermediate"],
            num_experts=wanted["experts"], num_experts_per_tok=min(2, wanted["experts"]), num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=128,
        )
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp())
    model.save_pretrained(folder)
    return folder


def load(folder: Path, quantization: Any = None) -> Any:
    """Load in float32, quantised or not, in training mode.

    In eval mode 4-bit Linears compute in bfloat16 on some CPUs.
    """
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=quantization).train()


FAMILIES = ("qwen3_moe", "glm4_moe", "deepseek_v3", "qwen3_5_moe")
CODES: dict[str, dict[str, Any]] = {
    "nf4": {}, "nf4 single": {"code": "nf4", "double_quant": False}, "fp4": {}, "int8": {},
}  # fmt: skip
PARAMETERS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
X = torch.randint(0, 128, (2, 9), generator=torch.Generator().manual_seed(3))


def config(code: str) -> Any:
    """Return the config of one of ``CODES``, with Linears that compute in float32."""
    from harness.experts import ExpertQuantizationConfig  # noqa: PLC0415 - after a program has looked at the libraries

    return ExpertQuantizationConfig(**{"code": code, **CODES[code]}, compute_dtype=torch.float32)


def decoded(model: Any) -> Any:
    """Return a copy whose experts are the plain parameters that the codes mean."""
    from harness.experts import QuantizedExperts  # noqa: PLC0415 - as above

    plain = copy.deepcopy(model)
    for module in plain.modules():
        for name, weights in list(module.named_parameters(recurse=False)):
            if isinstance(weights, QuantizedExperts):
                setattr(module, name, torch.nn.Parameter(weights.dequantize(), requires_grad=False))
    return plain


def packed(model: Any) -> dict[str, Any]:
    """Return what every quantised experts parameter keeps."""
    from harness.experts import QuantizedExperts  # noqa: PLC0415 - as above

    return {name: p.packed for name, p in model.named_parameters() if isinstance(p, QuantizedExperts)}


def lora(seed: int, parameters: tuple[str, ...] = PARAMETERS) -> tuple[int, LoraConfig]:
    """Return a LoRA whose weights are random, not zero."""
    options = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "target_modules": []}
    return seed, LoraConfig(**options, target_parameters=list(parameters))


def attach(model: Any, chosen: tuple[int, LoraConfig]) -> Any:
    """Attach it."""
    torch.manual_seed(chosen[0])
    return get_peft_model(model, chosen[1])
