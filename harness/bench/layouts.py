"""What the checkpoints hold that are measured: keys and shapes as published repositories have them, at chosen sizes;
pure.

Sources of the layouts: the published Qwen3-30B-A3B and DeepSeek-V3 repositories (config.json,
model.safetensors.index.json).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

Shape = tuple[int, ...]
BF16 = 2
"""Bytes of an element."""


@dataclass(frozen=True, kw_only=True)
class Qwen3Moe:
    """A qwen3_moe checkpoint: experts stored one by one.

    Attributes:
        layers: each of them routes.
        experts: E, in each layer.
        hidden: H.
        width: I, of one expert.
        heads: of queries.
        kv_heads: of keys and values.
        head_dim: of each head.
        vocab: tokens; embedding and head are two tensors.
    """

    layers: int
    experts: int = 128
    hidden: int = 1024
    width: int = 768
    heads: int = 16
    kv_heads: int = 4
    head_dim: int = 128
    vocab: int = 8192

    @property
    def attention(self) -> dict[str, Shape]:
        """(out, in) of the four projections of a layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (queries, self.hidden),
            "k_proj": (keys, self.hidden),
            "v_proj": (keys, self.hidden),
            "o_proj": (self.hidden, queries),
        }

    @property
    def expert(self) -> dict[str, Shape]:
        """(out, in) of the three projections of an expert."""
        up = (self.width, self.hidden)
        return {"gate_proj": up, "up_proj": up, "down_proj": (self.hidden, self.width)}

    def tensors(self) -> Iterator[tuple[str, Shape]]:
        """Yield every key with its shape, in the order of a published index."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for layer in range(self.layers):
            stem = f"model.layers.{layer}"
            yield f"{stem}.input_layernorm.weight", (self.hidden,)
            for expert in range(self.experts):
                for name, shape in self.expert.items():
                    yield f"{stem}.mlp.experts.{expert}.{name}.weight", shape
            yield f"{stem}.mlp.gate.weight", (self.experts, self.hidden)
            yield f"{stem}.post_attention_layernorm.weight", (self.hidden,)
            for name in ("q_norm", "k_norm"):
                yield f"{stem}.self_attn.{name}.weight", (self.head_dim,)
            for name, shape in self.attention.items():
                yield f"{stem}.self_attn.{name}.weight", shape
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocab, self.hidden)

    @property
    def size(self) -> int:
        """Bytes of all tensors in bf16."""
        return sum(BF16 * prod(shape) for _, shape in self.tensors())

    def config(self) -> dict[str, Any]:
        """Return config.json as published, these sizes apart."""
        return {
            "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
            "bos_token_id": 1, "decoder_sparse_step": 1, "eos_token_id": 2, "head_dim": self.head_dim,
            "hidden_act": "silu", "hidden_size": self.hidden, "initializer_range": 0.02,
            "intermediate_size": 4 * self.width, "max_position_embeddings": 4096, "max_window_layers": self.layers,
            "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": self.width,
            "norm_topk_prob": True, "num_attention_heads": self.heads, "num_experts": self.experts,
            "num_experts_per_tok": 8, "num_hidden_layers": self.layers, "num_key_value_heads": self.kv_heads,
            "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": False,
            "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True,
            "use_sliding_window": False, "vocab_size": self.vocab,
        }  # fmt: skip


_SIZES: tuple[dict[str, int], ...] = (
    {},
    {"hidden": 256, "width": 192, "heads": 8, "kv_heads": 2, "head_dim": 64, "vocab": 2048},
    {"hidden": 64, "width": 48, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocab": 512},
)
FEWEST_LAYERS = 3


def qwen3_moe_of(size: int) -> Qwen3Moe:
    """Return the qwen3_moe checkpoint of 128 experts whose bytes come nearest to ``size``: the widest that has a few
    layers.
    """
    for sizes in _SIZES:
        one, two = Qwen3Moe(layers=1, **sizes).size, Qwen3Moe(layers=2, **sizes).size
        layers = round((size - one) / (two - one)) + 1
        if layers >= FEWEST_LAYERS:
            return Qwen3Moe(layers=layers, **sizes)
    return Qwen3Moe(layers=FEWEST_LAYERS, **_SIZES[-1])


@dataclass(frozen=True, kw_only=True)
class DeepseekV3:
    """A deepseek_v3 checkpoint at its published sizes, in bf16, with its multi-token-prediction layer."""

    layers: int = 61
    dense: int = 3
    experts: int = 256
    hidden: int = 7168
    width: int = 2048
    dense_width: int = 18432
    vocab: int = 129280
    heads: int = 128
    q_rank: int = 1536
    kv_rank: int = 512
    nope: int = 128
    rope: int = 64
    value: int = 128

    @property
    def expert(self) -> dict[str, Shape]:
        """(out, in) of the three projections of an expert."""
        up = (self.width, self.hidden)
        return {"gate_proj": up, "up_proj": up, "down_proj": (self.hidden, self.width)}

    def _mlp(self, stem: str, width: int) -> Iterator[tuple[str, Shape]]:
        yield f"{stem}.gate_proj.weight", (width, self.hidden)
        yield f"{stem}.up_proj.weight", (width, self.hidden)
        yield f"{stem}.down_proj.weight", (self.hidden, width)

    def _layer(self, layer: int) -> Iterator[tuple[str, Shape]]:
        stem = f"model.layers.{layer}"
        attention = f"{stem}.self_attn"
        yield f"{attention}.q_a_proj.weight", (self.q_rank, self.hidden)
        yield f"{attention}.q_a_layernorm.weight", (self.q_rank,)
        yield f"{attention}.q_b_proj.weight", (self.heads * (self.nope + self.rope), self.q_rank)
        yield f"{attention}.kv_a_proj_with_mqa.weight", (self.kv_rank + self.rope, self.hidden)
        yield f"{attention}.kv_a_layernorm.weight", (self.kv_rank,)
        yield f"{attention}.kv_b_proj.weight", (self.heads * (self.nope + self.value), self.kv_rank)
        yield f"{attention}.o_proj.weight", (self.hidden, self.heads * self.value)
        if layer < self.dense:
            yield from self._mlp(f"{stem}.mlp", self.dense_width)
        else:
            yield f"{stem}.mlp.gate.weight", (self.experts, self.hidden)
            yield f"{stem}.mlp.gate.e_score_correction_bias", (self.experts,)
            yield from self._mlp(f"{stem}.mlp.shared_experts", self.width)
            for expert in range(self.experts):
                yield from self._mlp(f"{stem}.mlp.experts.{expert}", self.width)
        yield f"{stem}.input_layernorm.weight", (self.hidden,)
        yield f"{stem}.post_attention_layernorm.weight", (self.hidden,)

    def tensors(self) -> Iterator[tuple[str, Shape]]:
        """Yield every key with its shape; layer 61 predicts further tokens and is no layer of the model."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for layer in range(self.layers):
            yield from self._layer(layer)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocab, self.hidden)
        stem = f"model.layers.{self.layers}"
        yield f"{stem}.enorm.weight", (self.hidden,)
        yield f"{stem}.hnorm.weight", (self.hidden,)
        yield f"{stem}.eh_proj.weight", (self.hidden, 2 * self.hidden)
        yield f"{stem}.embed_tokens.weight", (self.vocab, self.hidden)
        yield f"{stem}.shared_head.norm.weight", (self.hidden,)
        yield f"{stem}.shared_head.head.weight", (self.vocab, self.hidden)
        yield from self._layer(self.layers)

    def config(self) -> dict[str, Any]:
        """Return config.json, as far as a plan reads it."""
        return {
            "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": self.hidden,
            "num_hidden_layers": self.layers, "first_k_dense_replace": self.dense, "n_routed_experts": self.experts,
            "n_shared_experts": 1, "moe_intermediate_size": self.width, "intermediate_size": self.dense_width,
            "num_attention_heads": self.heads, "num_key_value_heads": self.heads, "q_lora_rank": self.q_rank,
            "kv_lora_rank": self.kv_rank, "qk_nope_head_dim": self.nope, "qk_rope_head_dim": self.rope,
            "v_head_dim": self.value, "num_nextn_predict_layers": 1, "tie_word_embeddings": False,
            "torch_dtype": "bfloat16", "vocab_size": self.vocab,
        }  # fmt: skip
