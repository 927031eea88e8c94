"""A fused pair taken apart: every Linear's delta is the rows of the fused delta that are its own."""

from __future__ import annotations

import pytest
import torch

from harness.worker.stages.per_expert import per_expert, split_pair

EXPERTS, RANK, IN, OUT = 3, 2, 5, 8
"""``OUT`` holds gate and up, four rows each."""
A = torch.arange(EXPERTS * RANK * IN, dtype=torch.float64).reshape(EXPERTS * RANK, IN) - 7
B = (torch.arange(OUT * RANK * EXPERTS, dtype=torch.float64).reshape(OUT, RANK * EXPERTS) % 11) - 5


def fused_delta(expert: int) -> torch.Tensor:
    """(OUT, IN), the sum over ranks written out: PEFT's ``o r e, e r i -> e o i``."""
    return torch.stack([
        sum((B[o, r * EXPERTS + expert] * A[expert * RANK + r] for r in range(RANK)), torch.zeros(IN).double())
        for o in range(OUT)
    ])  # fmt: skip


@pytest.mark.parametrize("expert", range(EXPERTS))
def test_each_linear_has_its_rows_of_the_fused_delta(expert: int) -> None:
    found = split_pair(A, B, ("gate_proj", "up_proj"), EXPERTS, swapped=False)

    for role, rows in (("gate_proj", slice(0, 4)), ("up_proj", slice(4, 8))):
        a, b = found[expert, role]
        assert (a.shape, b.shape) == ((RANK, IN), (4, RANK))
        assert torch.equal(b @ a, fused_delta(expert)[rows])


def test_swapped_roles_give_the_transposed_delta() -> None:
    a, b = split_pair(A, B, ("down_proj",), EXPERTS, swapped=True)[1, "down_proj"]

    assert torch.equal(b @ a, fused_delta(1).T)


def test_keys_are_those_of_transformers_4_and_others_stay() -> None:
    fused, linear = "base_model.model.model.layers.0.mlp.experts", "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{prefix}.{part}.weight": t for prefix in (fused, linear) for part, t in (("lora_A", A), ("lora_B", B))}
    pairs = {fused: "model.layers.0.mlp.experts:down_proj", linear: "model.layers.0.self_attn.q_proj"}

    found = per_expert(tensors, pairs, EXPERTS, swapped=False)

    assert len(found) == 2 + 2 * EXPERTS
    assert torch.equal(found[f"{linear}.lora_B.weight"], B)
    assert torch.equal(found[f"{fused}.2.down_proj.lora_A.weight"], A[4:6])
    assert torch.equal(found[f"{fused}.2.down_proj.lora_B.weight"], B[:, [2, 5]])
