"""Layers whose every expert is wrong: what that costs, and that a mixed-up order is named among many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from format_samples import write_base
from merge_samples import Sample, Spec, build

from harness.merge import AuditReport, audit


def judged(sample: Sample, folder: Path, tensors: dict[str, torch.Tensor]) -> AuditReport:
    """The report on a checkpoint with these tensors in place of the base's."""
    return audit(sample.base, sample.adapter, write_base(folder / "merged", {**sample.tensors, **tensors}))


@pytest.mark.parametrize("disk", ["fused", "per_expert"])
def test_what_a_wholly_wrong_layer_costs_grows_with_its_experts_and_not_their_square(tmp_path: Path, disk: str) -> None:
    """In bytes read, for each byte of the checkpoint."""
    random, cost = np.random.default_rng(0), []
    for experts in (12, 48):
        sample = build(tmp_path / str(experts), Spec(experts=experts, layers=1, disk=disk, rank=1))
        noise = {
            key: (sample.tensors[key].double() + torch.tensor(0.3 * random.standard_normal(delta.shape))).float()
            for key, delta in sample.deltas.items()
        }
        report = judged(sample, tmp_path / str(experts), noise)
        assert {row.verdict for row in report.rows if row.targeted} == {"wrong"}
        cost.append(report.bytes_read / sum(tensor.nbytes for tensor in sample.tensors.values()))

    assert cost[1] < 1.5 * cost[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("whole", [False, True])
def test_any_order_of_many_experts_is_named(tmp_path: Path, dtype: str, *, whole: bool) -> None:
    """Of deltas, or of whole merged experts."""
    experts = 40
    sample = build(tmp_path, Spec(experts=experts, layers=1, disk="fused", dtype=dtype, hidden=24, width=16))
    order = np.roll(np.random.default_rng(5).permutation(experts), 1)
    merged = {}
    for key, delta in sample.deltas.items():
        base = sample.tensors[key].double()
        merged[key] = base + torch.tensor(delta)
        if ".experts." in key:
            merged[key] = merged[key][order] if whole else base + torch.tensor(delta[order])
        merged[key] = merged[key].to(sample.tensors[key].dtype)

    rows = [row for row in judged(sample, tmp_path, merged).rows if row.targeted and row.kind == "expert"]

    moved = [expert for expert in range(experts) if order[expert] != expert]
    told = "the weights of expert {}, merged" if whole else "the delta of expert {}"
    for row in rows:
        assert row.at_fault == tuple(moved)
        first = "; ".join(f"expert {expert}: {told.format(order[expert])}" for expert in moved[:3])
        assert row.detail == f"{first}; and {len(moved) - 3} more"
