"""Run inside a stack's environment: tiny real models, real adapters, our merge, and what the library makes of them.

``python merge_families_cells.py <folder that holds harness/merge> <out.json> [case …]``. For each case a tiny random
model is built and saved by transformers, and an adapter with random lora_B is attached and saved by PEFT. Three things
are compared in float32. The logits of the model in memory with those of our merge after a reload. The parameters of our
merge with those of PEFT's ``merge_and_unload`` (saved and loaded again alike). The logits of base and trained model,
which must differ for any of it to mean something.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, sys.argv[1])

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from harness.merge import merge, plan_merge

ATTENTION = ["q_proj", "o_proj"]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
SMALL = {
    "vocab_size": 48, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 12, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
FUSED = hasattr(transformers, "conversion_mapping") or int(transformers.__version__.split(".")[0]) >= 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """A configuration class with its settings, and the LoRA to attach.

    ``resize``: new vocabulary. ``name``: the adapter's. ``second``: a second adapter like the first, and the weights of
    both. ``peft_merges_alike``: whether PEFT's own merge is right.
    """

    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    modules: list[str] = field(default_factory=lambda: list(ATTENTION))
    parameters: list[str] | None = None
    lora: dict[str, Any] = field(default_factory=dict)
    resize: int | None = None
    name: str = "default"
    peft_merges_alike: bool = True
    second: tuple[float, float] | None = None


def _experts(config: str, fused: list[str] | None = None, linear: list[str] | None = None, **settings: Any) -> Case:
    """A MoE case: the experts as this transformers release holds them, and attention."""
    if FUSED or linear is None:
        return Case(config=config, settings=settings, parameters=fused or EXPERTS)
    return Case(config=config, settings=settings, modules=ATTENTION + linear)


LINEAR = ["gate_proj", "up_proj", "down_proj"]
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "intermediate_size": 40}
MLA = {
    "head_dim": 4, "kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_group": 1, "topk_group": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 20, "intermediate_size": 40, "first_k_dense_replace": 1, "num_key_value_heads": 2,
    "n_shared_experts": 1,
}  # fmt: skip


def cases() -> dict[str, Callable[[], Case]]:
    """Every case by name."""
    llama = {"intermediate_size": 40}
    biased = {**llama, "attention_bias": True}

    def plain(label: str, settings: dict[str, Any] | None = None, **more: Any) -> tuple[str, Callable[[], Case]]:
        return label, lambda: Case(config="LlamaConfig", settings=settings or llama, **more)

    wrapped: dict[str, Any] = {"modules": ["q_proj", "embed_tokens", "lm_head"]}
    tied = {**llama, "tie_word_embeddings": True}
    return {
        "qwen3_moe": lambda: _experts("Qwen3MoeConfig", linear=LINEAR, **MOE),
        "qwen2_moe": lambda: _experts(
            "Qwen2MoeConfig", linear=LINEAR, shared_expert_intermediate_size=28, **MOE
        ),
        "qwen3_next": lambda: _experts(
            "Qwen3NextConfig", linear=LINEAR, shared_expert_intermediate_size=28, linear_key_head_dim=8,
            linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2,
            layer_types=["linear_attention", "full_attention"], **MOE,
        ),
        "olmoe": lambda: _experts(
            "OlmoeConfig", linear=LINEAR, num_experts=4, num_experts_per_tok=2, intermediate_size=20
        ),
        "glm4_moe": lambda: _experts(
            "Glm4MoeConfig", linear=LINEAR, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=20,
            intermediate_size=40, first_k_dense_replace=1, n_group=1, topk_group=1,
        ),
        "glm4_moe_lite": lambda: Case(
            config="Glm4MoeLiteConfig", settings={**MLA, "q_lora_rank": 8}, parameters=EXPERTS,
            modules=["q_b_proj", "o_proj"],
        ),
        "deepseek_v2": lambda: _moe_mla("DeepseekV2Config", topk_method="greedy"),
        "deepseek_v3": lambda: _moe_mla("DeepseekV3Config"),
        "mixtral": lambda: _experts(
            "MixtralConfig", linear=["w1", "w2", "w3"], num_local_experts=4, num_experts_per_tok=2, intermediate_size=20
        ),
        "minimax_m2": lambda: _experts(
            "MiniMaxM2Config", linear=["w1", "w2", "w3"], num_local_experts=4, num_experts_per_tok=2,
            intermediate_size=20, rotary_dim=12,
        ),
        "phimoe": lambda: _experts(
            "PhimoeConfig", linear=["w1", "w2", "w3"], num_local_experts=4, num_experts_per_tok=2, intermediate_size=20
        ),
        "granitemoe": _granite,
        "gpt_oss": lambda: Case(config="GptOssConfig", settings=GPT_OSS, parameters=EXPERTS),
        "gpt_oss_down": lambda: Case(config="GptOssConfig", settings=GPT_OSS, parameters=EXPERTS[1:]),
        "gpt_oss_square": lambda: Case(
            config="GptOssConfig", settings={**GPT_OSS, "intermediate_size": 24}, parameters=EXPERTS
        ),
        "llama4": lambda: Case(
            config="Llama4TextConfig", parameters=EXPERTS,
            settings={"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 20,
            "intermediate_size_mlp": 40, "interleave_moe_layer_step": 1},
        ),
        "gemma4": lambda: Case(
            config="Gemma4TextConfig", parameters=EXPERTS,
            settings={"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "intermediate_size": 40,
            "moe_intermediate_size": 20, "global_head_dim": 12, "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 48, "layer_types": ["sliding_attention", "full_attention"]},
        ),
        "llama": lambda: Case(config="LlamaConfig", settings=llama, modules=[*ATTENTION, *LINEAR]),
        "qwen3": lambda: Case(config="Qwen3Config", settings=llama, modules=[*ATTENTION, *LINEAR]),
        "gpt2": lambda: Case(
            config="GPT2Config", settings=GPT2, modules=["c_attn", "c_proj"], lora={"fan_in_fan_out": True}
        ),
        "gpt2_dora_bias": lambda: Case(
            config="GPT2Config", settings=GPT2, modules=["c_attn", "c_proj"],
            lora={"fan_in_fan_out": True, "use_dora": True, "bias": "all"},
        ),
        **dict([
            plain("rslora", lora={"use_rslora": True, "rank_pattern": {"o_proj": 5},
                  "alpha_pattern": {"layers.1.self_attn.q_proj": 9}}),
            plain("dora", lora={"use_dora": True}),
            plain("lora_bias", biased, lora={"lora_bias": True}),
            plain("bias_all", biased, lora={"bias": "all"}),
            plain("bias_lora_only", biased, lora={"bias": "lora_only"}),
            plain("layers_exclude", modules=["q_proj", "o_proj", "up_proj"],
                  lora={"layers_to_transform": [1], "exclude_modules": ["up_proj"]}),
            plain("modules_to_save", lora={"modules_to_save": ["lm_head", "embed_tokens", "input_layernorm"]}),
            plain("modules_to_save_named", lora={"modules_to_save": ["lm_head"]}, name="other"),
            plain("embedding_lora", **wrapped),
            plain("tied_head", tied, modules=["q_proj", "lm_head"], peft_merges_alike=False),
            plain("tied_embedding_lora", tied, modules=["q_proj", "embed_tokens"], peft_merges_alike=False),
            plain("tied_modules_to_save", tied, lora={"modules_to_save": ["embed_tokens"]}, peft_merges_alike=False),
            plain("tied_head_to_save", tied, lora={"modules_to_save": ["lm_head"]}, peft_merges_alike=False),
            plain("tied_ensured", tied, lora={"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
            plain("tokens", lora={"trainable_token_indices": [7, 3, 11]}),
            plain("tokens_both", lora={"trainable_token_indices": {"embed_tokens": [3, 1], "lm_head": [5]}}),
            plain("tokens_tied", tied, lora={"trainable_token_indices": [7, 3, 11]}),
            plain("resized", resize=51),
            plain("resized_smaller", resize=40),
            plain("resized_tied", tied, resize=51),
            plain("resized_embedding_lora", resize=51, **wrapped),
            plain("resized_to_save", resize=51, lora={"modules_to_save": ["lm_head", "embed_tokens"]}),
            plain("resized_tokens", resize=51, lora={"trainable_token_indices": [49, 3]}),
            plain("resized_tokens_tied", tied, resize=51, lora={"trainable_token_indices": [49, 3]}),
        ]),
        "two_adapters": lambda: Case(config="LlamaConfig", settings=llama, second=(1, 1)),
        "two_adapters_weighted": lambda: Case(config="LlamaConfig", settings=llama, second=(0.5, 2.0)),
        "two_adapters_fused": lambda: replace(_experts("Qwen3MoeConfig", linear=LINEAR, **MOE), second=(1, 1)),
        "router": lambda: Case(
            config="Qwen3MoeConfig", settings=MOE, modules=[] if FUSED else ["mlp.gate"],
            parameters=["gate.weight", *EXPERTS] if FUSED else None,
        ),
        "router_to_save": lambda: Case(
            config="Qwen3MoeConfig", settings=MOE, lora={"modules_to_save": ["gate"]}, modules=ATTENTION
        ),
        "experts_to_save": lambda: Case(
            config="MixtralConfig",
            settings={"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 20},
            lora={"modules_to_save": ["mlp" if FUSED else "block_sparse_moe"]},
        ),
    }  # fmt: skip


GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 64}
GPT_OSS = {
    "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 20,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip


def _moe_mla(config: str, **settings: Any) -> Case:
    case = _experts(config, linear=LINEAR, **{**MLA, **settings})
    return Case(
        config=config, settings=case.settings, parameters=case.parameters, modules=[*case.modules[1:], "kv_b_proj"]
    )


def _granite() -> Case:
    from transformers.models.granitemoe import modeling_granitemoe  # noqa: PLC0415 - only where there is one

    fused = hasattr(modeling_granitemoe, "GraniteMoeExperts")
    names = EXPERTS if fused else ["input_linear.weight", "output_linear.weight"]
    settings = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 20}
    return Case(config="GraniteMoeConfig", settings=settings, parameters=names)


def build(case: Case) -> Any:
    """Return the tiny model of a case, all its parameters random (zeros and ones would hide faults)."""
    config_class = getattr(transformers, case.config)
    settings = {**SMALL, **case.settings}
    if case.config == "GPT2Config":
        settings = {
            key: value
            for key, value in settings.items()
            if key in {*GPT2, "vocab_size", "bos_token_id", "eos_token_id"}
        }
    settings.setdefault("tie_word_embeddings", False)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_class(**settings)).float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if parameter.dim() == 1 and "norm" in name else 0.2 * noise)
    return model


def logits(model: Any, size: int) -> torch.Tensor:
    """Return log-probabilities in float64 for two fixed sequences of tokens below ``size``."""
    tokens = torch.arange(2 * 24).reshape(2, 24).mul(7).remainder(size)
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=tokens).logits.double(), dim=-1)


def kl(first: torch.Tensor, second: torch.Tensor) -> float:
    """KL(first ‖ second), mean over positions, over the common part of the vocabulary where one is larger."""
    width = min(first.shape[-1], second.shape[-1])
    first, second = first[..., :width], second[..., :width]
    return float((first.exp() * (first - second)).sum(-1).mean())


def randomise(model: Any) -> None:
    """Give everything trainable random values, as a training would.

    That is lora_B, magnitudes, biases, tokens, whole modules.
    """
    generator = torch.Generator().manual_seed(2)
    done: set[int] = set()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.data_ptr() not in done:
                done.add(parameter.data_ptr())
                noise = torch.randn(parameter.shape, generator=generator)
                lora = "lora_A" in name or "lora_B" in name or "lora_embedding" in name
                parameter.copy_(0.3 * noise if lora else parameter + 0.2 * noise)


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Run one case; see the module's description."""
    build(case).save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()
    size = min(case.resize or SMALL["vocab_size"], SMALL["vocab_size"])
    before = logits(base, size)
    if case.resize:
        base.resize_token_embeddings(case.resize, mean_resizing=False)
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=case.modules or None,
        target_parameters=case.parameters,
        init_lora_weights=True,
        **case.lora,
    )
    model = get_peft_model(base, config, adapter_name=case.name).eval()
    if case.second:
        model.add_adapter("second", config)
        model.base_model.set_adapter([case.name, "second"])
    randomise(model)
    model.save_pretrained(folder / "adapter")
    adapters = [folder / "adapter" / (case.name if case.name != "default" else "")]
    if case.second:
        adapters.append(folder / "adapter" / "second")
    if case.second and case.second != (1, 1):
        model.add_weighted_adapter([case.name, "second"], list(case.second), "both", combination_type="cat")
        model.set_adapter("both")
    trained = logits(model, size)
    plan = plan_merge(folder / "base", adapters, weights=case.second)
    report = merge(plan, folder / "merged")
    loaded, info = AutoModelForCausalLM.from_pretrained(
        folder / "merged", dtype=torch.float32, output_loading_info=True
    )
    merged = logits(loaded.eval(), size)
    result = {
        "signal": kl(trained, before),
        "kl": kl(trained, merged),
        "logprob": float((trained - merged).abs().max()),
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "attempted": report.attempted,
        "applied": report.applied,
        "by_kind": {kind: count.attempted for kind, count in report.by_kind.items()},
        "io_layout": report.io_layout.to_json() if report.io_layout else None,
        "notes": list(report.notes),
    }
    if case.peft_merges_alike:
        result["peft"], result["peft_control"] = _against_peft(model, loaded, folder)
    return result


def _against_peft(model: PeftModel, ours: Any, folder: Path) -> tuple[float, float]:
    """Return how far our parameters, and those of the base, are from those of ``merge_and_unload``.

    Largest absolute difference, relative to the tensor's largest value. For the base it is taken over all tensors that
    have its shape.
    """
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).state_dict()
    active = model.active_adapters if isinstance(model.active_adapters, list) else [model.active_adapter]
    their, mine = model.merge_and_unload(adapter_names=active).state_dict(), ours.state_dict()
    if mine.keys() != their.keys():
        raise AssertionError(f"other parameters: {sorted(mine.keys() ^ their.keys())}")

    def apart(first: dict[str, torch.Tensor], key: str) -> float:
        return float((first[key] - their[key]).abs().max() / their[key].abs().max().clamp(min=1e-30))

    same = [key for key in their if key in base and base[key].shape == their[key].shape]
    return max(apart(mine, key) for key in their), max(apart(base, key) for key in same)


def main() -> None:
    """Run the cases and write what came out, an error as its last line."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    found = cases()
    results: dict[str, Any] = {}
    for name in sys.argv[3:] or list(found):
        with tempfile.TemporaryDirectory() as folder:
            try:
                results[name] = run(found[name](), Path(folder))
            except Exception as error:  # noqa: BLE001 - a case's failure is its result
                results[name] = {
                    "error": f"{type(error).__name__}: {str(error)[:400]}", "trace": traceback.format_exc()[-1500:]
                }  # fmt: skip
    Path(sys.argv[2]).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
