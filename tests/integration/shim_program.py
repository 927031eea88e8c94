"""Run in the stack that the shim is for: an adapter of a fused family is loaded.

It is loaded without the shim, with it, and without it again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.core_model_loading import WeightConverter

sys.path.insert(0, sys.argv[1])
from harness.worker.shims import shimmed
from harness.worker.shims.weight_converter_arguments import ShimRefusedError

NAMES = ("weight-converter-arguments",)


def base() -> Qwen3MoeForCausalLM:
    """The same tiny model each time."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "vocab_size": 32,
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 1}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **heads, num_experts_per_tok=2)).eval()


def attempt(folder: Path) -> str:
    """Load the adapter and say what became of it."""
    try:
        PeftModel.from_pretrained(base(), folder)
    except TypeError as error:
        return str(error)
    return "loaded"


targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
trained = get_peft_model(
    base(), LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"], target_parameters=targets)
).eval()
folder = Path(tempfile.mkdtemp())
trained.save_pretrained(folder)
x = torch.arange(12).reshape(2, 6)
before = WeightConverter.__init__
alone = attempt(folder)
with shimmed(NAMES) as applied, torch.no_grad():
    replaced = WeightConverter.__init__ is not before
    loaded = PeftModel.from_pretrained(base(), folder).eval()
    difference = float((loaded(input_ids=x).logits - trained(input_ids=x).logits).abs().max())
    try:
        WeightConverter("a", "b", [], distributed_operation=object())
    except ShimRefusedError as error:
        refused = str(error)
again = attempt(folder)
answer = {
    "alone": alone, "applied": applied, "replaced": replaced, "difference": difference, "refused": refused,
    "again": again, "gone": WeightConverter.__init__ is before,
}  # fmt: skip
sys.stdout.write(json.dumps(answer) + "\n")
