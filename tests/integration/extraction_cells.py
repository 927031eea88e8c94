"""Run in a stack's environment: LoRAs on fused experts, extracted and held against PEFT's own delta, in float64.

They are held against PEFT's own delta, in float64.
Reads cases from standard input, one JSON object a line, and answers with one line each.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

sys.path.insert(0, sys.argv[1])
from harness.experts import UnrecognisedLoraError, extract_expert_lora


class Experts(torch.nn.Module):
    """Fused experts: one parameter, (num_experts, out, in), or (num_experts, in, out) where ``is_transposed``."""

    def __init__(self, shape: tuple[int, int, int], transposed: bool) -> None:
        super().__init__()
        if transposed:
            self.is_transposed = True
        self.weight = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Do nothing: only the LoRA's own factors are looked at."""
        return x


class Model(torch.nn.Module):
    """Something for PEFT to wrap."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the experts."""
        return self.experts(x)


def spoil(wrapper: Any, how: str | None) -> tuple[Any, str | None]:
    """Return what to extract from, and which adapter, with one thing about it that is not understood."""
    if how == "another module":
        return torch.nn.Linear(2, 2), None
    if how == "no such adapter":
        return wrapper, "other"
    if how == "bias":
        wrapper.lora_B["default"].bias = torch.nn.Parameter(torch.zeros(wrapper.lora_B["default"].weight.shape[0]))
    if how == "dropout":
        wrapper.lora_dropout["default"] = torch.nn.Dropout(0.1)
    if how == "merged":
        wrapper.merge()
    if how == "rank":
        wrapper.r["default"] += 1
    if how == "variant":
        wrapper.use_dora["default"] = True
    if how == "inactive":
        wrapper._active_adapter = []
    return wrapper, None


def answer(case: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(case["seed"])
    count, inward, outward = case["experts"], case["in"], case["out"]
    shape = (count, inward, outward) if case["transposed"] else (count, outward, inward)
    model = Model(Experts(shape, case["transposed"]))
    config = LoraConfig(
        r=case["rank"],
        lora_alpha=case["alpha"],
        use_rslora=case["rslora"],
        target_parameters=["experts.weight"],
        target_modules=[],
    )
    wrapper = get_peft_model(model, config).base_model.model.experts
    for layers in (wrapper.lora_A, wrapper.lora_B):
        layers["default"].weight.data = torch.randn_like(layers["default"].weight, dtype=torch.float64)
    delta = wrapper.get_delta_weight("default")
    fits = delta.shape[-2:] == shape[1:]
    spoilt, name = spoil(wrapper, case.get("spoil"))
    try:
        lora = extract_expert_lora(spoilt, name)
    except UnrecognisedLoraError as error:
        return {"refused": str(error), "peft_can": fits}
    x = torch.randn(count, 5, inward, dtype=torch.float64)
    ours = x @ lora.first @ lora.second * lora.scaling
    theirs = x @ (delta if case["transposed"] else delta.mT)  # one expert: PEFT gives (rows, columns)
    ours.square().sum().backward()
    gradients = all(bool(layers["default"].weight.grad.abs().sum() > 0) for layers in (wrapper.lora_A, wrapper.lora_B))
    return {
        "shapes": [list(lora.first.shape), list(lora.second.shape)],
        "error": float((ours - theirs).abs().max() / theirs.abs().max()),
        "io_layout": lora.io_layout,
        "gradients": gradients,
    }


for line in sys.stdin:
    sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
