"""Imported in a stack's environment: tiny models with a LoRA on their experts, and what is measured on them.

Needs the package on the path.
"""

from __future__ import annotations

from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from harness.worker.checkpoints.family import build
from harness.worker.checkpoints.geometry import geometry

ROLES = ("gate_up_proj", "down_proj")
NAMES = {"gate_up_proj": "gate_proj|up_proj", "down_proj": "down_proj"}
ELSEWHERE = LoraConfig(r=2, target_modules=["q_proj"])
FUSED = int(transformers.__version__.split(".")[0]) >= 5
SEVERAL = not FUSED or int(peft.__version__.split(".")[1]) >= 20
"""Whether this PEFT allows a second adapter on the same experts."""
IDS = torch.tensor([[(7 * i * i + 3 * i) % 100 + 2 for i in range(24)], [(5 * i * i + i) % 100 + 2 for i in range(24)]])


def base_model(case: dict[str, Any]) -> Any:
    """A tiny model of the family, at random, in the dtype asked for."""
    torch.manual_seed(1)
    dtype = getattr(torch, case.get("dtype", "float64"))
    # Eager for float64, which transformers' grouped_mm does not take; else the default of the release.
    chosen = {"experts_implementation": "eager"} if dtype == torch.float64 and FUSED else {}
    config = build(case.get("family", "qwen3_moe"), geometry(case.get("geometry", "distinct")), "published").config
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype, **chosen)


def lora(case: dict[str, Any], *, rank: int = 4) -> LoraConfig:
    """A LoRA on the experts, and on nothing else."""
    if FUSED:
        targets = {"target_parameters": [f"experts.{role}" for role in case.get("roles", ROLES)], "target_modules": []}
    else:
        names = "|".join(NAMES[role] for role in case.get("roles", ROLES))
        targets = {"target_modules": rf".*\.experts\.\d+\.({names})"}
    return LoraConfig(r=case.get("rank", rank), lora_alpha=6, **targets)


def fill(model: Any, seed: int = 2) -> Any:
    """Give every LoRA tensor random values, large enough to matter."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, dtype=torch.float64).to(parameter.dtype) * 0.1
    return model


def lora_model(case: dict[str, Any]) -> Any:
    return fill(get_peft_model(base_model(case), lora(case)))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((left - right).detach().abs().max() / right.detach().abs().max())


def states(grouped: Any) -> list[str]:
    return sorted({report.state for report in grouped.blocks})


def reasons(grouped: Any) -> str:
    return "; ".join(sorted({report.reason for report in grouped.blocks}))


def calls(grouped: Any) -> list[int]:
    return [sum(r.grouped_calls for r in grouped.blocks), sum(r.library_calls for r in grouped.blocks)]


def traces(model: Any) -> list[str]:
    """Names of modules with a method or a hook of their own."""
    return [
        name
        for name, module in model.named_modules()
        if module._forward_pre_hooks or {"forward", "moe"} & vars(module).keys()
    ]
