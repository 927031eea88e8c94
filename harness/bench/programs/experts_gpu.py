"""Training steps of experts under PEFT on a GPU at real size.

Measured are tokens per second, and what loading and a step take of the GPU's memory.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from harness.bench.programs import experts_train

BATCH, LENGTH = 4, 2048
VOCABULARY = 1024
LAYERS = 4
LIBRARY = "library"
"""The path of a run without a LoRA: transformers' own grouped_mm, nothing of PEFT's or ours."""


class NoGpuError(RuntimeError):
    """The interpreter's torch sees no CUDA device."""


def load() -> dict[str, str]:
    """Import everything that loading and training import, and say what the device is.

    Raises:
        NoGpuError: there is no device.
    """
    import torch

    if not torch.cuda.is_available():
        raise NoGpuError(f"torch {torch.__version__} sees no CUDA device")
    return {**experts_train.load(), "device": torch.cuda.get_device_name()}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Load the model in ``code``, and take ``steps`` training steps on ``path``.

    Bytes are those of the device's allocator.
    """
    import torch

    base = Path(request["base"])
    if not base.exists():
        _write_base(base)
    torch.manual_seed(0)
    torch.cuda.reset_peak_memory_stats()
    model, grouped = _prepared(base, request["code"], request["path"])
    found: dict[str, Any] = {
        "load_peak": torch.cuda.max_memory_allocated(),
        "held": torch.cuda.memory_allocated(),
        "tokens": BATCH * LENGTH,
    }
    batch = torch.randint(0, VOCABULARY, (BATCH, LENGTH), device="cuda")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(request["steps"]):
        torch.cuda.synchronize()
        started = time.perf_counter()
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    # A path that was not taken must not be timed under its name.
    passed_over = [block for block in grouped if block.library_calls or not block.grouped_calls]
    assert not passed_over, passed_over  # noqa: S101 - the run fails, and the report says so
    return {**found, "step_seconds": seconds, "step_peak": torch.cuda.max_memory_allocated()}


def _write_base(base: Path) -> None:
    """Write a qwen3_moe of 4 layers, hidden 2048, with 128 experts of 768: 4.6 GiB in bf16, weights at random."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY, hidden_size=2048, intermediate_size=3072, moe_intermediate_size=768,
        num_hidden_layers=LAYERS, num_attention_heads=16, num_key_value_heads=4, head_dim=128, num_experts=128,
        num_experts_per_tok=8, max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(base, max_shard_size="1GB")


def _prepared(base: Path, code: Literal["nf4", "int8"] | None, path: str) -> tuple[Any, list[Any]]:
    """Return the model on the device, ready to train, and our forward's blocks where the path is ours."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.bfloat16,
        quantization_config=experts_train.quantization(code),
        device_map={"": "cuda"},
    )
    if path == LIBRARY:
        model.set_experts_implementation("grouped_mm")
        model.requires_grad_(False)  # noqa: FBT003 - torch's own signature
        model.get_input_embeddings().weight.requires_grad_(True)  # noqa: FBT003
        return model.train(), []
    peft_model, grouped = experts_train.attach(model, path)
    return peft_model, list(grouped.blocks) if grouped else []
