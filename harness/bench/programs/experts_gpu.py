"""Training steps of experts under PEFT on a GPU at real size.

Measured are tokens per second, and what loading and a step take of the GPU's memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.bench.programs import experts_train

VOCABULARY = 1024


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is trained on: a qwen3_moe, and how many tokens of it a step sees."""

    batch: int
    length: int
    layers: int
    hidden: int
    experts: int
    expert: int
    heads: int


SIZES = {
    "real": Size(batch=4, length=2048, layers=4, hidden=2048, experts=128, expert=768, heads=16),
    "small": Size(batch=2, length=64, layers=2, hidden=128, experts=16, expert=64, heads=4),
}
"""``small`` is for a CPU, to see that the program runs."""
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
    """Load the model in ``code``, and take ``steps`` training steps on ``path``, with a model of ``size``.

    Bytes are those of the allocator of ``device``; a CPU has none that counts, and its bytes are 0.
    """
    import torch

    base, size, device = Path(request["base"]), SIZES[request["size"]], request["device"]
    memory = torch.cuda if device == "cuda" else None
    if not base.exists():
        _write_base(base, size, device)
    torch.manual_seed(0)
    if memory:
        memory.reset_peak_memory_stats()
    model, grouped = _prepared(base, request["code"], request["path"], device)
    found: dict[str, Any] = {
        "load_peak": memory.max_memory_allocated() if memory else 0,
        "held": memory.memory_allocated() if memory else 0,
        "tokens": size.batch * size.length,
    }
    batch = torch.randint(0, VOCABULARY, (size.batch, size.length), device=device)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    if memory:
        memory.reset_peak_memory_stats()
    seconds = []
    for _ in range(request["steps"]):
        started = time.perf_counter()
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        if memory:
            memory.synchronize()  # else the clock stops before the device does
        seconds.append(time.perf_counter() - started)
    experts_train.check_taken(grouped)
    return {**found, "step_seconds": seconds, "step_peak": memory.max_memory_allocated() if memory else 0}


def _write_base(base: Path, size: Size, device: str) -> None:
    """Write the checkpoint, weights at random: 4.6 GiB in bf16 at its real size."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY, hidden_size=size.hidden, intermediate_size=4 * size.expert,
        moe_intermediate_size=size.expert, num_hidden_layers=size.layers, num_attention_heads=size.heads,
        num_key_value_heads=4, head_dim=size.hidden // size.heads, num_experts=size.experts, num_experts_per_tok=8,
        max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(base, max_shard_size="1GB")


def _prepared(base: Path, code: Literal["nf4", "int8"] | None, path: str, device: str) -> tuple[Any, Any]:
    """Return the model on the device, ready to train, and our forward's report where the path is ours."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.bfloat16,
        quantization_config=experts_train.quantization(code),
        device_map={"": device},
    )
    if path == LIBRARY:
        model.set_experts_implementation("grouped_mm")
        model.requires_grad_(False)  # noqa: FBT003 - torch's own signature
        model.get_input_embeddings().weight.requires_grad_(True)  # noqa: FBT003
        return model.train(), None
    attached: tuple[Any, Any] = experts_train.attach(model, path)
    return attached
