"""The audit of merges of several adapters: base + the weighted sum of their deltas, worked out here in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from format_samples import Numbers, delta, pair, write_adapter, write_base

from harness.merge import AuditReport, InputRefusedError, UsageError, audit

Q, O_PROJ, EXPERTS = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.experts"
DOWN = f"{EXPERTS}.down_proj"
E, H, W, R = 3, 32, 24, 2
WEIGHTS = (0.5, -1.5)


def deltas_by_expert(lora: dict[str, torch.Tensor]) -> np.ndarray:
    """The deltas of a fused down_proj, (experts, out, in); lora_B is packed rank-major."""
    lora_a, lora_b = (lora[f"{EXPERTS}.lora_{side}.weight"].double().numpy() for side in "AB")
    return np.stack([1.5 * lora_b[:, e::E] @ lora_a[R * e : R * (e + 1)] for e in range(E)])


class Case:
    """q_proj and the experts are covered by both adapters, o_proj by the second alone."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        numbers = Numbers()
        self.folder = folder
        self.tensors = {
            f"{Q}.weight": numbers(H, W), f"{O_PROJ}.weight": numbers(W, H), DOWN: numbers(E, H, W),
            "model.norm.weight": numbers(W),
        }  # fmt: skip
        self.tensors = {key: tensor.to(dtype) for key, tensor in self.tensors.items()}
        self.config = {"model_type": "qwen3_moe", "num_experts": E}
        self.base = write_base(folder / "base", self.tensors, **self.config)
        settings = {"target_modules": ["q_proj", "o_proj"], "target_parameters": ["mlp.experts.down_proj"]}
        self.adapters, self.deltas = [], []
        for name, modules in (("maths", {Q: (H, W)}), ("code", {Q: (H, W), O_PROJ: (W, H)})):
            lora = {f"{EXPERTS}.lora_A.weight": numbers(E * R, W), f"{EXPERTS}.lora_B.weight": numbers(H, E * R)}
            for module, shape in modules.items():
                lora |= pair(numbers, module, *shape, R)
            wanted = {**settings, "target_modules": [module.rpartition(".")[2] for module in modules]}
            self.adapters.append(write_adapter(folder / name, lora, **wanted))
            self.deltas.append({DOWN: deltas_by_expert(lora), **{f"{m}.weight": delta(lora, m) for m in modules}})

    def merged(self, *weights: float) -> dict[str, torch.Tensor]:
        """Base + the sum of the deltas, each times its weight, rounded once."""
        sums = {key: tensor.double() for key, tensor in self.tensors.items()}
        for weight, deltas in zip(weights, self.deltas, strict=True):
            for key, change in deltas.items():
                sums[key] = sums[key] + weight * torch.tensor(change)
        return {key: tensor.to(self.tensors[key].dtype) for key, tensor in sums.items()}

    def audit(self, merged: dict[str, torch.Tensor], weights: tuple[float, ...] | None = WEIGHTS) -> AuditReport:
        """The report on these tensors."""
        out = write_base(self.folder / "merged", merged, **self.config)
        return audit(self.base, self.adapters, out, weights=weights)


def verdicts(report: AuditReport) -> dict[str, tuple[str, str | None]]:
    return {row.key: (row.verdict, row.detail) for row in report.rows if row.targeted}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_sum_of_two_adapters(tmp_path: Path, dtype: torch.dtype, weights: tuple[float, ...] | None) -> None:
    case = Case(tmp_path, dtype)

    report = case.audit(case.merged(*(weights or (1, 1))), weights)

    assert report.ok
    assert {key: verdict for key, (verdict, _) in verdicts(report).items()} == dict.fromkeys(
        (f"{Q}.weight", f"{O_PROJ}.weight", DOWN), "applied"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_of_two_adapters_left_out(tmp_path: Path, dtype: torch.dtype) -> None:
    case = Case(tmp_path, dtype)

    second = verdicts(case.audit(case.merged(WEIGHTS[0], 0)))
    first = verdicts(case.audit(case.merged(0, WEIGHTS[1])))

    lost = ("scrambled", "without the delta of adapter 2 (code)")
    assert second == {f"{Q}.weight": lost, DOWN: lost, f"{O_PROJ}.weight": ("untouched", "still the base")}
    assert first[f"{Q}.weight"] == first[DOWN] == ("scrambled", "without the delta of adapter 1 (maths)")
    assert first[f"{O_PROJ}.weight"][0] == "applied"


def test_all_of_the_sum_at_another_scale_and_none_of_it(tmp_path: Path) -> None:
    case = Case(tmp_path, torch.float32)

    halved = case.audit(case.merged(*(weight / 2 for weight in WEIGHTS)))
    noise = case.merged(*WEIGHTS)
    noise[f"{Q}.weight"] = noise[f"{Q}.weight"] + Numbers(5)(H, W)

    assert {(row.verdict, row.scale) for row in halved.rows if row.targeted} == {("partial", 0.5)}
    assert halved.faults[0].detail == "applied at 0.5 times its scale"
    assert {verdict for verdict, _ in verdicts(case.audit(case.tensors)).values()} == {"untouched"}
    assert verdicts(case.audit(noise))[f"{Q}.weight"][0] == "wrong"
    assert {verdict for verdict, _ in verdicts(case.audit(case.merged(1, 1))).values()} <= {"wrong", "partial"}


def test_experts_in_another_order_under_both_adapters(tmp_path: Path) -> None:
    case = Case(tmp_path, torch.float32)
    merged = case.merged(*WEIGHTS)
    merged[DOWN] = case.tensors[DOWN] + (merged[DOWN] - case.tensors[DOWN])[[1, 2, 0]]

    (row,) = case.audit(merged).faults

    assert row.verdict == "scrambled"
    assert (
        row.detail
        == "expert 0: the delta of expert 1; expert 1: the delta of expert 2; expert 2: the delta of expert 0"
    )


def test_weights_are_held_against_the_adapters(tmp_path: Path) -> None:
    case = Case(tmp_path, torch.float32)

    with pytest.raises(UsageError, match="2 adapters were given, and 1 weight"):
        case.audit(case.tensors, (1.0,))


def test_nan_in_the_second_adapter_is_refused_by_name(tmp_path: Path) -> None:
    case = Case(tmp_path, torch.float32)
    lora = {**pair(Numbers(), Q, H, W), f"{Q}.lora_B.weight": torch.full((H, R), torch.nan)}
    case.adapters[1] = write_adapter(tmp_path / "broken", lora)

    with pytest.raises(InputRefusedError, match=r"lora_B of .*q_proj holds NaN or infinity"):
        case.audit(case.tensors)
