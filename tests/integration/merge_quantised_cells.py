"""Run inside a stack's environment: quantised bases that the real packages made, or read, merged by us.

``python merge_quantised_cells.py <folder that holds harness/merge> <out.json> [case …]``. For bitsandbytes the real
quantiser writes the base. Its decoded weights (``bitsandbytes.functional``) and an independent decode
(``table[nibble] * absmax``) are compared with ours bit by bit. FP8 and MXFP4 bases are written here from random codes
and read by transformers' own dequantisation. An adapter with lora_B = 0 gives the base as it is decoded. One with
random lora_B must match the model that PEFT trained on the quantised base.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, sys.argv[1])

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from harness.merge import merge, plan_merge

LLAMA = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
GPT_OSS = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
    "tie_word_embeddings": False, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip


def model_of(config: Any) -> Any:
    """Return a tiny model with random parameters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model: Any) -> torch.Tensor:
    """Return log-probabilities in float64 on fixed tokens."""
    tokens = torch.arange(48).reshape(2, 24).mul(7).remainder(60)
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=tokens).logits.double(), dim=-1)


def kl(first: torch.Tensor, second: torch.Tensor) -> float:
    """KL(first ‖ second), mean over positions."""
    return float((first.exp() * (first - second)).sum(-1).mean())


def adapt(model: Any, folder: Path, *, zero: bool, **lora: Any) -> Any:
    """Attach and save a LoRA, with lora_B zero or random."""
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **lora)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and not zero:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model


def merged_state(folder: Path, dtype: str = "float32", **options: Any) -> dict[str, torch.Tensor]:
    """Merge, and return the tensors of the output."""
    merge(plan_merge(folder / "base", folder / "adapter", dtype=dtype, **options), folder / "merged")
    config = json.loads((folder / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    state: dict[str, torch.Tensor] = {}
    for path in (folder / "merged").glob("*.safetensors"):
        state |= load_file(path)
    return state


def bitsandbytes_case(folder: Path, **settings: Any) -> dict[str, Any]:
    """A base quantised by bitsandbytes: decode compared, then a LoRA on it against our merge."""
    import bitsandbytes.functional as bnb  # noqa: PLC0415 - only where it is there

    model_of(transformers.LlamaConfig(**LLAMA)).save_pretrained(folder / "original")
    config = transformers.BitsAndBytesConfig(**settings)
    dtype = settings.get("bnb_4bit_compute_dtype", torch.float32)
    quantised = AutoModelForCausalLM.from_pretrained(folder / "original", quantization_config=config, dtype=dtype)
    quantised.save_pretrained(folder / "base")
    on_disk = load_file(folder / "base" / "model.safetensors")
    adapt(quantised, folder / "adapter", zero=True, target_modules=["q_proj"])
    decoded = merged_state(folder)
    theirs, independent = {}, {}
    quantised = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype).eval()
    for name, module in quantised.named_modules():
        weight = getattr(module, "weight", None)
        if type(weight).__name__ == "Params4bit":
            theirs[f"{name}.weight"] = bnb.dequantize_4bit(weight.data, weight.quant_state).reshape(
                module.out_features, module.in_features
            )
            independent[f"{name}.weight"] = by_hand(on_disk, f"{name}.weight").to(dtype)
        elif type(weight).__name__ == "Int8Params":
            theirs[f"{name}.weight"] = bnb.int8_vectorwise_dequant(on_disk[f"{name}.weight"], on_disk[f"{name}.SCB"])
    trained = adapt(quantised, folder / "adapter2", zero=False, target_modules=["q_proj", "down_proj"])
    # As in training: on processors with AVX512-BF16 bitsandbytes' layers multiply in bfloat16 once they are in eval
    # mode.
    truth = logits(trained.train())
    merge(plan_merge(folder / "base", folder / "adapter2", dtype="float32", base_as="quantized"), folder / "merged2")
    ours = AutoModelForCausalLM.from_pretrained(folder / "merged2", dtype=torch.float32).eval()
    onto = AutoModelForCausalLM.from_pretrained(folder / "original", dtype=torch.float32).eval()
    merge(plan_merge(folder / "original", folder / "adapter2"), folder / "merged3")
    original = AutoModelForCausalLM.from_pretrained(folder / "merged3", dtype=torch.float32).eval()
    return {
        "tensors": len(theirs),
        "differ_from_theirs": sorted(key for key in theirs if not torch.equal(theirs[key].float(), decoded[key])),
        "differ_by_hand": sorted(key for key in independent if not torch.equal(independent[key].float(), decoded[key])),
        "left": sorted(key for key in decoded if not key.endswith("weight")),
        "signal": kl(truth, logits(onto)),
        "kl": kl(truth, logits(ours)),
        "kl_onto_original": kl(truth, logits(original)),
    }


def by_hand(tensors: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    """Decode one 4-bit weight one nibble at a time, from the tables in the file."""
    state = next(json.loads(bytes(t.tolist())) for name, t in tensors.items() if name.startswith(f"{key}.quant_state"))
    packed = tensors[key].reshape(-1)
    nibbles = torch.empty(packed.numel() * 2, dtype=torch.long)
    nibbles[0::2], nibbles[1::2] = packed >> 4, packed & 15
    scales = tensors[f"{key}.absmax"]
    if f"{key}.nested_absmax" in tensors:
        outer = tensors[f"{key}.nested_absmax"].repeat_interleave(state["nested_blocksize"])[: scales.numel()]
        scales = tensors[f"{key}.nested_quant_map"][scales.long()] * outer + torch.tensor(state["nested_offset"])
    values = tensors[f"{key}.quant_map"][nibbles]
    return (values * scales.repeat_interleave(state["blocksize"])[: values.numel()]).reshape(state["shape"])


def fp8_case(folder: Path) -> dict[str, Any]:
    """An FP8 base with blocks, which transformers can dequantise by itself."""
    config = transformers.LlamaConfig(**{**LLAMA, "hidden_size": 256, "intermediate_size": 384, "head_dim": 64})
    model_of(config).to(torch.bfloat16).save_pretrained(folder / "base")
    path = folder / "base" / "model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(3)
    for key in [key for key in tensors if key.endswith("proj.weight")]:
        rows, columns = tensors[key].shape
        tensors[key] = (tensors[key].float() * 100).to(torch.float8_e4m3fn)
        scale = torch.rand((-(-rows // 128), -(-columns // 128)), generator=generator) + 0.5
        tensors[f"{key}_scale_inv"] = scale * 0.01
    save_file(tensors, path, metadata={"format": "pt"})
    settings = json.loads((folder / "base" / "config.json").read_text())
    settings["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    (folder / "base" / "config.json").write_text(json.dumps(settings))
    loading = transformers.FineGrainedFP8Config(dequantize=True)
    return compared(folder, loading, target_modules=["q_proj"])


def mxfp4_case(folder: Path) -> dict[str, Any]:
    """A gpt_oss base with MXFP4 experts, which transformers can dequantise by itself."""
    model_of(transformers.GptOssConfig(**GPT_OSS)).to(torch.bfloat16).save_pretrained(folder / "base")
    path = folder / "base" / "model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(3)
    for key in [key for key in tensors if key.endswith(("gate_up_proj", "down_proj"))]:
        count, inner, outer = tensors.pop(key).shape
        shape = (count, outer, inner // 32)
        tensors[f"{key}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{key}_scales"] = torch.randint(118, 124, shape, generator=generator, dtype=torch.uint8)
    save_file(tensors, path, metadata={"format": "pt"})
    settings = json.loads((folder / "base" / "config.json").read_text())
    settings["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
    }
    (folder / "base" / "config.json").write_text(json.dumps(settings))
    loading = transformers.Mxfp4Config(dequantize=True)
    experts = ["experts.gate_up_proj", "experts.down_proj"]
    return compared(folder, loading, target_modules=["q_proj"], target_parameters=experts)


def compared(folder: Path, loading: Any, **lora: Any) -> dict[str, Any]:
    """Compare our decode with transformers', and our merge with a LoRA on the model that transformers dequantised."""
    theirs = AutoModelForCausalLM.from_pretrained(folder / "base", quantization_config=loading, dtype=torch.float32)
    theirs = theirs.float().eval()  # some releases leave what they dequantise in bfloat16
    before = logits(theirs)
    state = {key: value.clone() for key, value in theirs.state_dict().items()}
    if hasattr(theirs, "hf_quantizer"):
        del theirs.hf_quantizer
    theirs.config.__dict__.pop("quantization_config", None)
    trained = adapt(theirs, folder / "adapter", zero=False, **lora)
    truth = logits(trained)
    merged_state(folder)
    ours = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32).eval()
    targets = [*lora.get("target_modules", []), *(name.split(".")[-1] for name in lora.get("target_parameters", []))]
    mine = {key: value for key, value in ours.state_dict().items() if not any(name in key for name in targets)}
    return {
        "tensors": len(mine),
        "differ_from_theirs": sorted(key for key in mine if not torch.equal(state[key].float(), mine[key])),
        "differ_by_hand": [],
        "left": sorted(ours.state_dict().keys() ^ state.keys()),
        "signal": kl(truth, before),
        "kl": kl(truth, logits(ours)),
    }


CASES: dict[str, Any] = {
    "nf4": lambda folder: bitsandbytes_case(folder, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "nf4_double": lambda folder: bitsandbytes_case(
        folder, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
    "nf4_double_bf16": lambda folder: bitsandbytes_case(
        folder, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    ),
    "fp4": lambda folder: bitsandbytes_case(folder, load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": lambda folder: bitsandbytes_case(folder, load_in_8bit=True),
    "fp8": fp8_case,
    "mxfp4": mxfp4_case,
}  # fmt: skip


def main() -> None:
    """Run the cases and write what came out."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in sys.argv[3:] or list(CASES):
        with tempfile.TemporaryDirectory() as folder:
            try:
                results[name] = CASES[name](Path(folder))
            except Exception as error:  # noqa: BLE001 - a case's failure is its result
                results[name] = {
                    "error": f"{type(error).__name__}: {str(error)[:400]}", "trace": traceback.format_exc()[-1500:]
                }  # fmt: skip
    Path(sys.argv[2]).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
