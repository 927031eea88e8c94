"""Each architecture against one token worked out by hand.

The token's embedding is (1, 1), which a norm without eps leaves as it is. Attention adds (0, 6): alone, a token attends
to itself, so only the way of the value counts. (1, 7) has a root mean square of 5, so the MLP sees (0.2, 1.4). One of
``gate = (5 ln 3, 0)``, ``up = (0, 10 / 7)`` and ``down = 4`` gives 4 silu(ln 3) 2 = 6 ln 3.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from harness.definitions import deepseek_v3, glm4_moe, qwen3_5_moe, qwen3_moe
from harness.definitions.weights import Weights

LN3 = math.log(3)
SIX = 6 * LN3
ONES, NORMS = np.ones(2), ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm")


def outer(**named: Any) -> dict[str, Any]:
    """The embedding, the head and whatever a family has."""
    return {"embed_tokens.weight": np.ones((1, 2)), "lm_head.weight": np.eye(2)} | named


def mlp(path: str, down: list[float]) -> dict[str, Any]:
    """An MLP that gives 1.5 ln 3 times ``down``."""
    return {
        f"{path}.gate_proj.weight": np.array([[5 * LN3, 0.0]]),
        f"{path}.up_proj.weight": np.array([[0.0, 10 / 7]]),
        f"{path}.down_proj.weight": np.array(down)[:, None],
    }


def routing(experts: int) -> dict[str, Any]:
    """Experts of which the first has the largest logit, 1; it gives (6 ln 3, 0), and the others something else."""
    first = [[5.0, 0.0], *([[0.0, 0.0]] * (experts - 1))]
    found: dict[str, Any] = {"layers.0.mlp.gate.weight": np.array(first)}
    for e in range(experts):
        found |= mlp(f"layers.0.mlp.experts.{e}", [4.0, 0.0] if e == 0 else [70.0 * e, -9.0])
    return found


def normed(x: float, y: float) -> Any:
    """The logits: the last norm's output, as the head is the identity."""
    return pytest.approx(np.array([[x, y]]) / math.sqrt((x * x + y * y) / 2), rel=1e-12)


def norms(value: Any) -> dict[str, Any]:
    return {f"{name}.weight": value for name in NORMS}


def attention(width: int, value: list[list[float]]) -> dict[str, Any]:
    """Queries and keys of any kind, the value's way, and an output that is the identity."""
    at = "layers.0.self_attn"
    return {
        f"{at}.q_proj.weight": np.full((width, 2), 0.3),
        f"{at}.k_proj.weight": np.full((width, 2), -0.7),
        f"{at}.v_proj.weight": np.array(value),
        f"{at}.o_proj.weight": np.eye(2),
        f"{at}.q_norm.weight": np.full(width, 0.4),
        f"{at}.k_norm.weight": np.full(width, 0.6),
    }


CONFIG: dict[str, Any] = {
    "rms_norm_eps": 0.0, "num_hidden_layers": 1, "head_dim": 2, "rope_theta": 10000.0, "num_experts_per_tok": 1,
    "norm_topk_prob": True,
}  # fmt: skip


def test_qwen3_moe() -> None:
    weights = outer(**norms(ONES), **attention(2, [[0, 0], [0, 6]]), **routing(2))

    assert qwen3_moe.logits(Weights(stored=weights), CONFIG, np.array([0])) == normed(1 + SIX, 7)


def test_qwen3_moe_whose_probabilities_are_not_normalised() -> None:
    """The chosen expert's logit is 1, the other's 0: e / (e + 1)."""
    weights = outer(**norms(ONES), **attention(2, [[0, 0], [0, 6]]), **routing(2))
    config = {**CONFIG, "norm_topk_prob": False}

    said = qwen3_moe.logits(Weights(stored=weights), config, np.array([0]))
    assert said == normed(1 + SIX * math.e / (math.e + 1), 7)


@pytest.mark.parametrize(("dense", "x", "y"), [(1, 1.0, 7 + SIX), (0, 1 + 2 * SIX, 7 + SIX)])
def test_glm4_moe(dense: int, x: float, y: float) -> None:
    """The value comes from the bias alone. The dense MLP and the shared expert give (0, 6 ln 3)."""
    at = "layers.0.self_attn"
    weights = outer(
        **norms(ONES),
        **attention(2, [[0, 0], [0, 0]]),
        **{f"{at}.q_proj.bias": np.ones(2), f"{at}.k_proj.bias": np.ones(2), f"{at}.v_proj.bias": np.array([0.0, 6.0])},
        **{"layers.0.mlp.gate.e_score_correction_bias": np.array([0.0, 0.2])},
        **mlp("layers.0.mlp", [0.0, 4.0]),
        **mlp("layers.0.mlp.shared_experts", [0.0, 4.0]),
        **routing(2),
    )
    config = {
        **CONFIG, "first_k_dense_replace": dense, "partial_rotary_factor": 0.5, "n_group": 1, "topk_group": 1,
        "routed_scaling_factor": 2.0,
    }  # fmt: skip

    assert glm4_moe.logits(Weights(stored=weights), config, np.array([0])) == normed(x, y)


@pytest.mark.parametrize(("dense", "x", "y"), [(1, 1.0, 7 + SIX), (0, 1 + 2.5 * SIX, 7 + SIX)])
def test_deepseek_v3(dense: int, x: float, y: float) -> None:
    """The value's latent is 1 and its norm's weight 3; twice that is the value, 6."""
    at = "layers.0.self_attn"
    weights = outer(
        **norms(ONES),
        **{
            f"{at}.q_a_proj.weight": np.array([[0.2, 0.3]]),
            f"{at}.q_a_layernorm.weight": np.ones(1),
            f"{at}.q_b_proj.weight": np.array([[1.0], [2.0], [3.0]]),
            f"{at}.kv_a_proj_with_mqa.weight": np.array([[1.0, 0.0], [0.4, 0.0], [0.0, 0.5]]),
            f"{at}.kv_a_layernorm.weight": np.array([3.0]),
            f"{at}.kv_b_proj.weight": np.array([[0.9], [2.0]]),
            f"{at}.o_proj.weight": np.array([[0.0], [1.0]]),
            "layers.0.mlp.gate.e_score_correction_bias": np.zeros(4),
        },
        **mlp("layers.0.mlp", [0.0, 4.0]),
        **mlp("layers.0.mlp.shared_experts", [0.0, 4.0]),
        **routing(4),
    )
    yarn = {
        "factor": 40.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1,
        "original_max_position_embeddings": 4096,
    }  # fmt: skip
    config = {
        **CONFIG, "first_k_dense_replace": dense, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5,
        "qk_nope_head_dim": 1, "qk_rope_head_dim": 2, "v_head_dim": 1, "kv_lora_rank": 1, "num_attention_heads": 1,
        "rope_scaling": yarn,
    }  # fmt: skip

    assert deepseek_v3.logits(Weights(stored=weights), config, np.array([0])) == normed(x, y)


def test_yarn_divides_long_waves_and_leaves_short_ones() -> None:
    """Base 10^4, 64 wide, context 4096.

    32 turns happen at index 64 ln(4096 / 64 pi) / (2 ln 10^4) = 10.47, one turn at 22.51: the ramp goes from 10 to 23.
    """
    scaling = {"factor": 40.0, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}

    found = deepseek_v3.yarn_frequencies(10000.0, 64, scaling)

    plain = [10000.0 ** (-i / 32) for i in range(32)]
    assert found[:11] == pytest.approx(plain[:11], rel=1e-12)
    assert found[23:] == pytest.approx([value / 40 for value in plain[23:]], rel=1e-12)
    assert found[14] == pytest.approx(plain[14] * (9 / 13 + 4 / 13 / 40), rel=1e-12)


SHARED = {**mlp("layers.0.mlp.shared_expert", [0.0, 4.0]), "layers.0.mlp.shared_expert_gate.weight": np.zeros((1, 2))}
"""Half of it counts: its gate is sigmoid(0)."""
QWEN3_5 = {**CONFIG, "rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}}


def test_qwen3_5_moe_with_full_attention() -> None:
    """Norms store weight - 1. Half of q_proj's rows are a gate of sigmoid(0), which halves the value 12."""
    weights = outer(**norms(np.zeros(2)), **attention(2, [[0, 0], [0, 12]]), **routing(2), **SHARED)
    weights["layers.0.self_attn.q_proj.weight"] = np.array([[0.3, 0.3], [0.3, 0.3], [0.0, 0.0], [0.0, 0.0]])

    said = qwen3_5_moe.logits(Weights(stored=weights), {**QWEN3_5, "layer_types": ["full_attention"]}, np.array([0]))
    assert said == normed(1 + SIX, 7 + SIX / 2)


def test_qwen3_5_moe_with_linear_attention() -> None:
    """The first token reads back a share of its own value, (0, v), which the norm makes (0, sqrt 2) whatever v is.

    silu(ln 3) of the gate and the norm's weight make it 6.
    """
    at = "layers.0.linear_attn"
    weights = outer(
        **norms(np.zeros(2)),
        **{
            f"{at}.in_proj_qkv.weight": np.array([[LN3, 0.0], [0.0, LN3], [0.0, 0.0], [LN3, 0.0]]),
            f"{at}.conv1d.weight": np.array([[[7.0, 1.0]]] * 4),
            f"{at}.in_proj_b.weight": np.zeros((1, 2)),
            f"{at}.in_proj_a.weight": np.zeros((1, 2)),
            f"{at}.in_proj_z.weight": np.array([[LN3, 0.0], [0.0, LN3]]),
            f"{at}.dt_bias": np.ones(1),
            f"{at}.A_log": np.zeros(1),
            f"{at}.norm.weight": np.full(2, 6 / (math.sqrt(2) * 0.75 * LN3)),
            f"{at}.out_proj.weight": np.eye(2),
        },
        **routing(2),
        **SHARED,
    )
    config = {
        **QWEN3_5, "layer_types": ["linear_attention"], "linear_key_head_dim": 1, "linear_value_head_dim": 2,
        "linear_num_key_heads": 1, "linear_num_value_heads": 1,
    }  # fmt: skip

    assert qwen3_5_moe.logits(Weights(stored=weights), config, np.array([0])) == normed(1 + SIX, 7 + SIX / 2)


def test_the_delta_rule_replaces_what_a_key_reads() -> None:
    """Key 1 twice. The first token stores 0.5 * 8 = 4. It decays to 2. The second replaces half of the way to 10: 6."""
    ones = np.ones((2, 1, 1))
    value, strength, decay = np.array([[[8.0]], [[10.0]]]), np.full((2, 1), 0.5), np.full((2, 1), 0.5)

    read = qwen3_5_moe.delta_rule(3 * ones, ones, value, strength, decay)

    assert read[:, 0, 0] == pytest.approx([12.0, 18.0])


def test_a_causal_convolution_ends_with_the_token_itself() -> None:
    x, weight = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]), np.array([[[100.0, 1.0]], [[0.0, 2.0]]])

    mixed = qwen3_5_moe.causal_convolution(x, weight)

    assert mixed == pytest.approx(np.array([[1.0, 20.0], [102.0, 40.0], [203.0, 60.0]]))
