"""Loads a model, quantised or not, puts a LoRA on its experts and trains it for a few steps.

It says what memory and time loading and training took. Experts are what the interpreter's transformers makes of them.
In transformers 5 they are fused parameters, which ``ExpertQuantizationConfig`` quantises. In transformers 4 they are a
list of MLPs, whose Linears transformers' own config quantises.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, Literal, Self

from harness.bench.measured import resident
from harness.worker.releases import release

PAUSE = 0.002
"""Seconds between two looks at the memory."""
BATCH, LENGTH = 2, 128
MOST_LAYERS = 8
"""More than any model here has."""
GROUPED = "grouped_forward"


def load() -> dict[str, str]:
    """Import everything that loading and training import."""
    import bitsandbytes
    import peft
    import peft.tuners.lora.bnb
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM is not None  # noqa: S101 - it is lazy
    if fused():
        import harness.experts

        assert harness.experts.ExpertQuantizationConfig is not None  # noqa: S101 - so is this
    versions = {"bitsandbytes": bitsandbytes.__version__, "peft": peft.__version__, "torch": torch.__version__}
    return {**versions, "transformers": transformers.__version__}


def fused() -> bool:
    """Whether transformers makes one parameter of a layer's experts."""
    import transformers

    return release(transformers.__version__) >= (5, 0)


class Peak:
    """The most anonymous memory (``RssAnon``) that the process holds within a block.

    Pages of a mapped checkpoint do not count: the kernel can drop them.
    """

    def __init__(self) -> None:
        self.highest = 0
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(PAUSE):
            self.highest = max(self.highest, resident("RssAnon"))

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._watcher.join()


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Load, attach, and train ``steps`` steps; bytes are above what the imports hold."""
    import torch
    from transformers import AutoModelForCausalLM

    from harness.experts import quantization_report

    codes = quantization(request["code"])
    before = resident("RssAnon")
    started = time.perf_counter()
    with Peak() as loading:
        model = AutoModelForCausalLM.from_pretrained(request["base"], dtype=torch.bfloat16, quantization_config=codes)
    loaded = time.perf_counter() - started
    experts = quantization_report(model)["experts"]
    found = {
        "load_seconds": loaded,
        "load_peak": loading.highest - before,
        "expert_bytes": experts.stored,
        "expert_bytes_16_bit": experts.bytes_in_16_bits,
    }
    if not request["steps"]:
        return found
    peft_model, grouped = attach(model, request["path"])
    batch = torch.randint(0, 256, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([p for p in peft_model.parameters() if p.requires_grad], lr=1e-3)
    seconds = []
    with Peak() as training:
        for _ in range(request["steps"]):
            started = time.perf_counter()
            optimizer.zero_grad()
            peft_model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - started)
    check_taken(grouped)
    return {**found, "step_peak": training.highest - before, "step_seconds": seconds, "tokens": BATCH * LENGTH}


def check_taken(grouped: Any) -> None:
    """Check after the steps that our forward, where it was the path, ran in every block and nothing else did.

    A path that was not taken must not be timed under its name.

    Raises:
        AssertionError: the blocks that were passed over. The run fails, and the report says so.
    """
    blocks = grouped.blocks if grouped else []
    passed_over = [block for block in blocks if block.library_calls or not block.grouped_calls]
    assert not passed_over, passed_over  # noqa: S101 - as said


def quantization(code: Literal["nf4", "int8"] | None) -> Any:
    """Return the config that quantises Linears and experts; routers stay as they are."""
    if code is None:
        return None
    if fused():
        from harness.experts import ExpertQuantizationConfig

        return ExpertQuantizationConfig(code)
    import torch
    from transformers import BitsAndBytesConfig

    # Full names: transformers 4.57 takes a bare "gate" for part of "gate_proj" too.
    routers = [f"model.layers.{layer}.mlp.gate" for layer in range(MOST_LAYERS)]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=code,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[*routers, "lm_head"],
    )


def attach(model: Any, path: str) -> tuple[Any, Any]:
    """Return the model with a LoRA of rank 16 on its routed experts, on one of the forward paths.

    Where the path is ours, our forward's report is the second value. Else that is None.
    """
    from peft import LoraConfig, get_peft_model

    if fused():
        names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        targets: dict[str, Any] = {"target_modules": [], "target_parameters": names}
        model.set_experts_implementation("eager" if path == GROUPED else path)
    else:
        targets = {"target_modules": r".*\.mlp\.experts\.\d+\.(gate|up|down)_proj"}
    config = LoraConfig(r=16, lora_alpha=32, init_lora_weights=False, **targets)
    peft_model = get_peft_model(model, config).train()
    if path != GROUPED:
        return peft_model, None
    from harness.experts import enable_grouped_forward

    return peft_model, enable_grouped_forward(peft_model)
