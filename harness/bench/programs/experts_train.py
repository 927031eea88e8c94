"""Loads a model, quantised or not, puts a LoRA on its experts and trains it for a few steps; says what memory and time both took."""

from __future__ import annotations

import time
from typing import Any

from harness.bench.measured import reset_peak, resident

BATCH, LENGTH = 2, 128
GROUPED = "grouped_forward"


def load() -> dict[str, str]:
    """Import everything that loading and training import."""
    import bitsandbytes
    import peft
    import peft.tuners.lora.bnb
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    import harness.experts

    assert AutoModelForCausalLM is not None  # noqa: S101 - it is lazy
    assert harness.experts.ExpertQuantizationConfig is not None  # noqa: S101 - so is this
    versions = {"bitsandbytes": bitsandbytes.__version__, "peft": peft.__version__, "torch": torch.__version__}
    return {**versions, "transformers": transformers.__version__}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Load, attach, and train ``steps`` steps; bytes are above what the imports hold."""
    import torch
    from transformers import AutoModelForCausalLM

    from harness.experts import ExpertQuantizationConfig, quantization_report

    code = request["code"]
    quantization = None if code is None else ExpertQuantizationConfig(code)
    before = resident("VmRSS")
    reset_peak()
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        request["base"], dtype=torch.bfloat16, quantization_config=quantization
    )
    loaded = time.perf_counter() - started
    load_peak = resident("VmHWM") - before
    experts = quantization_report(model)["experts"]
    found = {
        "load_seconds": loaded,
        "load_peak": load_peak,
        "expert_bytes": experts.stored,
        "expert_bytes_16_bit": 2 * (experts.quantized + experts.plain),
    }
    if not request["steps"]:
        return found
    peft_model = _attach(model, request["path"])
    batch = torch.randint(0, 256, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([p for p in peft_model.parameters() if p.requires_grad], lr=1e-3)
    reset_peak()
    seconds = []
    for _ in range(request["steps"]):
        started = time.perf_counter()
        optimizer.zero_grad()
        peft_model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return {**found, "step_peak": resident("VmHWM") - before, "step_seconds": seconds, "tokens": BATCH * LENGTH}


def _attach(model: Any, path: str) -> Any:
    """Return the model with a LoRA of rank 16 on its routed experts, on one of the forward paths."""
    from peft import LoraConfig, get_peft_model

    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=16, lora_alpha=32, target_modules=[], target_parameters=targets, init_lora_weights=False)
    model.set_experts_implementation("eager" if path == GROUPED else path)
    peft_model = get_peft_model(model, config).train()
    if path == GROUPED:
        from harness.experts import enable_grouped_forward

        report = enable_grouped_forward(peft_model)
        refused = [block for block in report.blocks if block.state != "grouped"]
        assert not refused, refused  # noqa: S101 - a path that is not taken must not be timed under its name
    return peft_model
