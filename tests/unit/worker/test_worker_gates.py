"""Both gates on values computed by hand or in another way."""

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from harness.worker.cell import _check_precision
from harness.worker.checkpoints.family import Checkpoint, Routing
from harness.worker.checkpoints.tensors import TensorSpec
from harness.worker.observation import Observation
from harness.worker.stages.compare import exact_band
from harness.worker.stages.evaluate import Sample
from harness.worker.stages.experts_watch import bias_of, precision_of, router_gap, routing_weight
from harness.worker.stages.functional import (
    distance,
    judge_logprobs,
    likeliest_lowered,
    match_samples,
    one_moved,
    surest_replaced,
)
from harness.worker.stages.tensor_gate import TensorReport, inspect


def test_kl_is_the_closed_form_for_two_outcomes() -> None:
    p, q = 0.8, 0.6
    reference = torch.tensor([[[math.log(p), math.log(1 - p)]]])
    other = torch.tensor([[[math.log(q) + 3.0, math.log(1 - q) + 3.0]]])
    seen = distance(reference, other, torch.tensor([[True]]))

    assert seen.kl == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)), rel=1e-6)
    assert seen.max_logprob_diff == pytest.approx(math.log((1 - q) / (1 - p)), rel=1e-6)
    assert seen.top1_agreement == 1.0


def test_positions_near_a_tie_are_reported_apart() -> None:
    reference = torch.zeros(1, 2, 2)
    other = torch.tensor([[[0.0, 0.0], [5.0, 0.0]]])
    seen = distance(reference, other, torch.tensor([[True, False]]))

    assert seen.kl == 0.0
    assert seen.kl_near_tie == pytest.approx(math.log(0.5) - 0.5 * (5 - 2 * math.log1p(math.exp(5))), rel=1e-6)


def test_no_clear_position_is_not_a_number_and_passes_no_band() -> None:
    seen = distance(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.tensor([[False]]))

    assert math.isnan(seen.kl)
    assert not seen.kl <= 1e-9


# Altered measurements, which are what controls are made of


def test_one_logit_moves_its_log_probability_by_nearly_as_much_and_no_other_position() -> None:
    logits = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(1)) * 3
    clear = torch.tensor([[False, False, True], [True, True, True]])
    moved = one_moved(logits, clear, 0.003)
    seen = distance(logits, moved, clear)

    assert 0.0025 < seen.max_logprob_diff <= 0.003
    assert torch.equal(moved != logits, (moved - logits).abs() > 0.002)
    assert (moved != logits).nonzero().tolist() == [[0, 2, int(logits[0, 2].argmin())]]


def test_without_a_clear_position_nothing_is_moved() -> None:
    logits = torch.zeros(1, 2, 3)

    assert torch.equal(one_moved(logits, torch.zeros(1, 2, dtype=torch.bool), 1.0), logits)


def test_likeliest_tokens_lowered_have_a_kl_of_about_a_thousandth() -> None:
    logits = torch.randn(2, 8, 30, generator=torch.Generator().manual_seed(1))
    seen = distance(logits, likeliest_lowered(logits), torch.ones(2, 8, dtype=torch.bool))

    assert 1e-4 < seen.kl < 5e-3


def test_the_surest_token_is_the_one_that_is_replaced() -> None:
    samples = [_sample(1, 2, margin=0.5), Sample(tokens=[3, 4, 5], margins=[0.1, 2.0, 0.3])]

    assert [sample.tokens for sample in surest_replaced(samples)] == [[1, 2], [3, 5, 5]]
    assert match_samples(samples, surest_replaced(samples), tie=1.9).tied == 0


def test_a_judgement_s_control_is_three_bands_off() -> None:
    logits = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(1)) * 3
    clear = torch.ones(2, 3, dtype=torch.bool)
    judgement, control = judge_logprobs(logits, logits, clear, band=1e-3, detail="why")

    assert (judgement.passed, judgement.value) == (True, 0.0)
    assert not control.passed
    assert control.value == pytest.approx(3e-3, rel=0.1)


def _sample(*tokens: int, margin: float = 1.0) -> Sample:
    return Sample(tokens=list(tokens), margins=[margin] * len(tokens))


def test_samples_say_where_they_part_and_by_what_margin() -> None:
    matches = match_samples([_sample(1, 2), _sample(3, 4, margin=0.25)], [_sample(1, 2), _sample(3, 5)], tie=0.1)

    assert (matches.matched, matches.tied) == (1, 0)
    assert matches.first_divergence == "sample 1, token 1, margin 0.25"


def test_a_sample_that_parts_at_a_tie_is_told_apart() -> None:
    matches = match_samples([_sample(3, margin=1e-5)], [_sample(4)], tie=1e-3)

    assert (matches.matched, matches.tied) == (0, 1)


def test_running_past_the_end_token_is_no_tie() -> None:
    matches = match_samples([_sample(3, 1, margin=1e-5)], [_sample(3, 1, 7)], tie=1e-3)

    assert (matches.matched, matches.tied) == (0, 0)


class _Router(torch.nn.Module):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)
        self.register_buffer("e_score_correction_bias", bias)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([("softmax", 1, 1), ("sigmoid", 1, 1), ("sigmoid", 4, 2)]))
def test_moving_a_logit_by_less_than_the_gap_changes_no_choice(seed: int, rule: tuple[str, int, int]) -> None:
    """The definition of the gap, tried out: nudge every expert's logit and choose again, by a plain loop."""
    scores_kind, n_group, topk_group = rule
    generator = torch.Generator().manual_seed(seed)
    router = _Router(torch.randn(8, 6, generator=generator), 0.1 * torch.randn(8, generator=generator))
    hidden = torch.randn(1, 6, generator=generator)
    routing = Routing(
        top_k=2, scores="softmax" if scores_kind == "softmax" else "sigmoid", n_group=n_group, topk_group=topk_group
    )
    gap = float(router_gap(hidden, routing_weight(router).detach(), bias_of(router), routing)[0])
    logits = (hidden @ router.weight.detach().T)[0]

    def scores_of(logits: torch.Tensor) -> torch.Tensor:
        return logits if scores_kind == "softmax" else logits.sigmoid() + router.e_score_correction_bias

    before = _choose(scores_of(logits), n_group, topk_group)
    for expert in range(8):
        # A group's score adds two experts up, so half the gap is the most that is safe there.
        for sign in (-1, 1):
            nudged = logits.clone()
            nudged[expert] += sign * 0.49 * gap

            assert _choose(scores_of(nudged), n_group, topk_group) == before


@given(st.integers(0, 2**31), st.sampled_from(["softmax", "sigmoid"]))
def test_moving_a_score_by_more_than_the_gap_changes_a_choice(seed: int, scores_kind: str) -> None:
    """Otherwise a gap of zero would do: without groups the last chosen falls behind the first that was not."""
    generator = torch.Generator().manual_seed(seed)
    router = _Router(torch.randn(8, 6, generator=generator), 0.1 * torch.randn(8, generator=generator))
    hidden = torch.randn(1, 6, generator=generator)
    routing = Routing(top_k=2, scores="softmax" if scores_kind == "softmax" else "sigmoid")
    gap = float(router_gap(hidden, routing_weight(router).detach(), bias_of(router), routing)[0])
    logits = (hidden @ router.weight.detach().T)[0]
    scores = logits if scores_kind == "softmax" else logits.sigmoid() + router.e_score_correction_bias
    before = _choose(scores, 1, 1)
    scores[min(before, key=lambda expert: float(scores[expert]))] -= 1.01 * gap + 1e-6

    assert _choose(scores, 1, 1) != before


def _choose(scores: torch.Tensor, n_group: int, topk_group: int) -> set[int]:
    size = len(scores) // n_group
    groups = [list(range(g * size, (g + 1) * size)) for g in range(n_group)]
    if n_group > 1:
        groups = sorted(groups, key=lambda members: -sum(sorted((float(scores[e]) for e in members), reverse=True)[:2]))
    kept = [e for members in groups[:topk_group] for e in members]
    return set(sorted(kept, key=lambda e: -float(scores[e]))[:2])


def test_gap_is_infinite_where_every_expert_is_chosen() -> None:
    router = _Router(torch.ones(2, 3), torch.zeros(2))

    assert math.isinf(
        float(router_gap(torch.ones(1, 3), router.weight.detach(), None, Routing(top_k=2, scores="softmax"))[0])
    )


SPECS = (
    TensorSpec(
        key="model.layers.0.mlp.experts.0.gate_proj.weight",
        shape=(2, 3),
        kind="expert",
        module="model.layers.0.mlp.experts",
        role="gate_proj",
        expert=0,
    ),
    TensorSpec(
        key="model.layers.0.mlp.experts.0.up_proj.weight",
        shape=(2, 3),
        kind="expert",
        module="model.layers.0.mlp.experts",
        role="up_proj",
        expert=0,
    ),
    TensorSpec(
        key="model.layers.0.mlp.experts.1.gate_proj.weight",
        shape=(2, 3),
        kind="expert",
        module="model.layers.0.mlp.experts",
        role="gate_proj",
        expert=1,
    ),
    TensorSpec(
        key="model.layers.0.mlp.experts.1.up_proj.weight",
        shape=(2, 3),
        kind="expert",
        module="model.layers.0.mlp.experts",
        role="up_proj",
        expert=1,
    ),
    TensorSpec(
        key="model.layers.0.self_attn.q_proj.weight",
        shape=(4, 3),
        kind="attention",
        module="model.layers.0.self_attn.q_proj",
    ),
    TensorSpec(key="model.norm.weight", shape=(3,)),
)
Q = "model.layers.0.self_attn.q_proj.weight"
PT = {"format": "pt"}
CHECKPOINT = Checkpoint(
    config={}, tensors=SPECS, routing=Routing(top_k=1, scores="softmax"), layers_with_experts=(0,), num_experts=2
)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A base, an adapter with two pairs and the deltas that go with them: (2, 4, 3) fused gate_up and (4, 3) q_proj."""
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "merged", "adapter"):
        (tmp_path / name).mkdir()
    base = {spec.key: torch.randn(spec.shape, generator=generator) for spec in SPECS}
    deltas = {
        "model.layers.0.mlp.experts:gate_up_proj": torch.randn(2, 4, 3, generator=generator).double(),
        "model.layers.0.self_attn.q_proj": torch.randn(4, 3, generator=generator).double(),
    }
    pairs = {"p.mlp.experts": "model.layers.0.mlp.experts:gate_up_proj", "p.q_proj": "model.layers.0.self_attn.q_proj"}
    save_file(base, tmp_path / "base" / "model.safetensors", metadata=PT)
    (tmp_path / "base" / "config.json").write_text("{}")
    save_file(deltas, tmp_path / "deltas.safetensors")
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    save_file(
        {f"{pair}.lora_{part}.weight": torch.ones(1) for pair in pairs for part in "AB"},
        tmp_path / "adapter" / "adapter_model.safetensors",
    )
    return tmp_path


def _right(work: Path) -> dict[str, torch.Tensor]:
    """The right result, tensor by tensor, written out."""
    base, deltas = load_file(work / "base" / "model.safetensors"), load_file(work / "deltas.safetensors")
    fused = deltas["model.layers.0.mlp.experts:gate_up_proj"]
    merged = dict(base)
    for expert in (0, 1):
        for role, rows in (("gate_proj", slice(0, 2)), ("up_proj", slice(2, 4))):
            key = f"model.layers.0.mlp.experts.{expert}.{role}.weight"
            merged[key] = (base[key].double() + fused[expert, rows]).float()
    merged[Q] = (base[Q].double() + deltas["model.layers.0.self_attn.q_proj"]).float()
    return merged


def _judged(work: Path, merged: dict[str, torch.Tensor]) -> TensorReport:
    values = {key: tensor.contiguous() for key, tensor in merged.items()}
    save_file(values, work / "merged" / "model.safetensors", metadata=PT)
    (work / "merged" / "config.json").write_text("{}")
    return inspect(
        CHECKPOINT, work=work, base=work / "base", adapter=work / "adapter", merged=work / "merged", ulp_max=1.0
    )


def test_a_right_merge_is_applied_everywhere(work: Path) -> None:
    report = _judged(work, _right(work))

    assert report.counts == Counter(attempted=5, applied=5)
    assert report.by_kind["expert"]["applied"] == 4
    assert report.exact_fraction == 1.0
    assert report.max_ulp <= 0.5
    assert [report.untouched_changed, report.keys_missing, report.keys_unexpected, report.files_missing] == [[]] * 4


def test_a_tensor_left_at_base_is_dropped(work: Path) -> None:
    report = _judged(work, _right(work) | {Q: load_file(work / "base" / "model.safetensors")[Q]})

    assert report.counts == Counter(attempted=5, applied=4, dropped=1)
    assert report.not_applied == [f"{Q} (dropped)"]


def test_two_experts_swapped_are_wrong(work: Path) -> None:
    merged = _right(work)
    first, second = (f"model.layers.0.mlp.experts.{e}.up_proj.weight" for e in (0, 1))
    merged[first], merged[second] = merged[second], merged[first]
    report = _judged(work, merged)

    assert report.counts == Counter(attempted=5, applied=3, wrong=2)


def test_a_scale_off_by_a_thousandth_is_wrong(work: Path) -> None:
    base = load_file(work / "base" / "model.safetensors")
    right = _right(work)
    report = _judged(work, right | {Q: base[Q] + 1.001 * (right[Q] - base[Q])})

    assert report.counts["wrong"] == 1


def test_a_zero_delta_must_leave_base_alone(work: Path) -> None:
    deltas = load_file(work / "deltas.safetensors")
    deltas["model.layers.0.mlp.experts:gate_up_proj"][1] = 0.0
    save_file(deltas, work / "deltas.safetensors")
    report = _judged(work, _right(work))

    assert report.counts == Counter(attempted=5, applied=3, zero_delta=2)


def test_a_delta_below_rounding_is_told_apart_from_a_dropped_one(work: Path) -> None:
    deltas = load_file(work / "deltas.safetensors")
    deltas["model.layers.0.self_attn.q_proj"] *= 1e-12
    save_file(deltas, work / "deltas.safetensors")
    report = _judged(work, _right(work))

    assert report.counts == Counter(attempted=5, applied=4, below_rounding=1)


def test_a_changed_untouched_tensor_a_lost_key_and_a_lost_file_are_named(work: Path) -> None:
    merged = _right(work)
    merged["model.norm.weight"] = merged["model.norm.weight"] + 1
    merged["surplus"] = torch.ones(1)
    del merged[Q]
    (work / "base" / "generation_config.json").write_text("{}")
    report = _judged(work, merged)

    assert report.untouched_changed == ["model.norm.weight"]
    assert (report.keys_missing, report.keys_unexpected) == ([Q], ["surplus"])
    assert report.files_missing == ["generation_config.json"]
    assert report.counts["wrong"] == 1


def test_a_config_that_was_rewritten_is_named(work: Path) -> None:
    (work / "base" / "config.json").write_text('{"tie_word_embeddings": false}')
    report = _judged(work, _right(work))

    assert report.files_changed == ["config.json"]


@pytest.mark.parametrize("said", [None, {}, {"format": "tf"}, {"other": "pt"}])
@pytest.mark.parametrize("keeps_bytes", [True, False])
def test_a_shard_that_does_not_say_that_it_is_torch_s_is_named(
    work: Path, said: dict[str, str] | None, keeps_bytes: bool
) -> None:
    _judged(work, _right(work))
    path = work / "merged" / "model.safetensors"
    save_file(load_file(path), path, metadata=said)
    report = _inspected(work, keeps_bytes=keeps_bytes)

    assert [name.split(" ")[0] for name in report.files_changed] == [path.name]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"5", b"{", b"null"])
def test_a_manifest_that_says_nothing_is_named(work: Path, content: bytes) -> None:
    (work / "merged" / "merge_manifest.json").write_bytes(content)

    assert _judged(work, _right(work)).files_changed == ["merge_manifest.json (says nothing)"]


def test_a_manifest_that_says_something_is_the_engine_s_own(work: Path) -> None:
    (work / "merged" / "merge_manifest.json").write_text('{"applied": 1}')

    assert _judged(work, _right(work)).files_changed == []


def test_an_expert_that_training_left_without_a_delta_is_named(work: Path) -> None:
    """Inside a fused tensor one idle expert hides among the others: it is looked for by itself."""
    fused = TensorSpec(
        key="model.layers.0.mlp.experts.gate_up_proj",
        shape=(2, 4, 3),
        kind="expert",
        module="model.layers.0.mlp.experts",
        role="gate_up_proj",
    )
    checkpoint = Checkpoint(
        config={}, tensors=(fused,), routing=CHECKPOINT.routing, layers_with_experts=(0,), num_experts=2
    )
    deltas = load_file(work / "deltas.safetensors")
    deltas["model.layers.0.mlp.experts:gate_up_proj"][1] = 0.0
    save_file(deltas, work / "deltas.safetensors")
    base = torch.ones(2, 4, 3)
    save_file({fused.key: base}, work / "base" / "model.safetensors")
    merged = (base.double() + deltas["model.layers.0.mlp.experts:gate_up_proj"]).float()
    save_file({fused.key: merged}, work / "merged" / "model.safetensors")
    report = inspect(
        checkpoint, work=work, base=work / "base", adapter=work / "adapter", merged=work / "merged", ulp_max=1.0
    )

    assert report.idle == ["model.layers.0.mlp.experts.gate_up_proj[1]"]
    assert report.counts["applied"] == 1, "the tensor as a whole is right, which is why this is looked at apart"


def test_an_index_that_does_not_say_what_is_there_is_named(work: Path) -> None:
    report = _judged(work, _right(work))
    size = sum(tensor.nbytes for tensor in load_file(work / "merged" / "model.safetensors").values())
    weight_map = {spec.key: "model.safetensors" for spec in SPECS}
    index = work / "merged" / "model.safetensors.index.json"
    seen = []
    for change, total in (({}, size), ({Q: "other.safetensors"}, size), ({}, 1), ({}, [])):
        index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map | change}))
        report = _judged(work, _right(work))
        seen.append(report.index_wrong)

    assert seen == [[], [Q], [f"total_size 1 (it is {size})"], [f"total_size [] (it is {size})"]]


def test_weights_that_the_base_does_not_have_are_named(work: Path) -> None:
    (work / "merged" / "pytorch_model.bin").write_bytes(b"")
    (work / "merged" / "merge_manifest.json").write_text("{}")
    report = _judged(work, _right(work))

    assert report.files_unexpected == ["pytorch_model.bin"]


def test_a_dtype_that_changed_is_named_with_or_without_a_delta(work: Path) -> None:
    merged = _right(work)
    merged["model.norm.weight"] = merged["model.norm.weight"].bfloat16()
    merged[Q] = merged[Q].bfloat16()
    report = _judged(work, merged)

    assert report.dtype_changes == [Q, "model.norm.weight"]


def test_a_pair_of_the_file_that_the_model_does_not_have_is_named(work: Path) -> None:
    save_file(
        {"p.other.lora_A.weight": torch.ones(1), "p.q_proj.lora_A.weight": torch.ones(1)},
        work / "adapter" / "adapter_model.safetensors",
    )
    report = _judged(work, _right(work))

    assert report.unpaired == ["p.other"]
    assert report.counts["attempted"] == 1, "attempted is counted from the adapter's file"


def test_nan_in_a_merged_tensor_is_wrong(work: Path) -> None:
    merged = _right(work)
    merged[Q][0, 0] = float("nan")
    report = _judged(work, merged)

    assert report.counts["wrong"] == 1
    assert math.isinf(report.max_ulp)


def test_bf16_rounded_twice_is_not_exact(work: Path) -> None:
    """What PEFT does in bf16: the delta is rounded, then the sum. Rightly rounded once, every element is exact."""
    generator = torch.Generator().manual_seed(5)
    big = TensorSpec(key=Q, shape=(64, 64), kind="attention", module="model.layers.0.self_attn.q_proj")
    base, delta = torch.randn(64, 64, generator=generator).bfloat16(), torch.randn(64, 64, generator=generator).double()
    checkpoint = Checkpoint(
        config={}, tensors=(big,), routing=CHECKPOINT.routing, layers_with_experts=(), num_experts=1
    )
    save_file({Q: base}, work / "base" / "model.safetensors")
    save_file({"model.layers.0.self_attn.q_proj": delta}, work / "deltas.safetensors")
    save_file({"p.q_proj.lora_A.weight": torch.ones(1)}, work / "adapter" / "adapter_model.safetensors")
    fractions = []
    for merged in ((base.double() + delta).bfloat16(), base + delta.bfloat16()):
        save_file({Q: merged}, work / "merged" / "model.safetensors")
        report = inspect(
            checkpoint, work=work, base=work / "base", adapter=work / "adapter", merged=work / "merged", ulp_max=1.0
        )
        fractions.append(report.exact_fraction)

    assert fractions[0] == 1.0
    assert fractions[1] is not None
    assert 0.6 < fractions[1] < 0.9


# A directory that is broken: each fault is a finding, and the rest is judged


def _cut(work: Path, *, shards: dict[str, list[str]] | None = None) -> None:
    """Cut the right merge into shards; by default ``Q`` lies in the second one, and all else in the first."""
    right = _right(work)
    for name, keys in (shards or {"a": [key for key in right if key != Q], "b": [Q]}).items():
        values = {key: right[key].contiguous() for key in keys}
        save_file(values, work / "merged" / f"{name}.safetensors", metadata=PT)


def _inspected(work: Path, *, keeps_bytes: bool) -> TensorReport:
    return inspect(
        CHECKPOINT, work=work, base=work / "base", adapter=work / "adapter", merged=work / "merged", ulp_max=1.0,
        keeps_bytes=keeps_bytes,
    )  # fmt: skip


@pytest.mark.parametrize("left", [0, 4, 60, -1])
def test_a_shard_that_is_cut_off_is_named_and_only_its_tensors_are_missing(work: Path, left: int) -> None:
    _cut(work)
    shard = work / "merged" / "b.safetensors"
    shard.write_bytes(shard.read_bytes()[:left])
    report = _inspected(work, keeps_bytes=True)

    assert report.counts == Counter(attempted=5, applied=4, wrong=1)
    assert report.keys_missing == [Q]
    assert len(report.index_wrong) == 1
    assert report.index_wrong[0].startswith("b.safetensors (unreadable: ")


def test_a_folder_in_place_of_a_shard_or_a_file_is_named(work: Path) -> None:
    _cut(work)
    for name in ("b.safetensors", "config.json"):
        (work / "merged" / name).unlink(missing_ok=True)
        (work / "merged" / name).mkdir()
    report = _inspected(work, keeps_bytes=True)

    assert (report.keys_missing, report.files_changed) == ([Q], ["config.json"])
    assert report.counts["applied"] == 4


@pytest.mark.parametrize("keeps_bytes", [True, False])
def test_a_key_in_two_shards_stands_for_nothing(work: Path, keeps_bytes: bool) -> None:
    _cut(work, shards={"a": [spec.key for spec in SPECS], "b": [Q]})
    (work / "merged" / "config.json").write_text("{}")
    report = _inspected(work, keeps_bytes=keeps_bytes)

    assert (report.keys_missing, report.keys_unexpected) == ([Q], [f"{Q} (in two shards)"])
    assert report.counts == Counter(attempted=5, applied=4, wrong=1)


@pytest.mark.parametrize(
    "index",
    [
        b"", b"not JSON", b"[]", b"null", b"{}", b'{"weight_map": null}', b'{"weight_map": []}',
        b'{"weight_map": {"a": ["b"]}}', b'{"weight_map": {}, "metadata": 3}', b"[" * 100_000, b"\xff",
    ],
)  # fmt: skip
@pytest.mark.parametrize("keeps_bytes", [True, False])
def test_an_index_that_is_none_is_named(work: Path, index: bytes, keeps_bytes: bool) -> None:
    (work / "merged" / "model.safetensors.index.json").write_bytes(index)
    (work / "merged" / "config.json").write_text("{}")
    _cut(work)
    report = _inspected(work, keeps_bytes=keeps_bytes)

    assert len(report.index_wrong) == 1
    assert report.index_wrong[0].startswith("model.safetensors.index.json (")
    assert report.counts == Counter(attempted=5, applied=5)


def test_a_directory_that_is_not_there_holds_nothing(work: Path) -> None:
    (work / "merged").rmdir()
    report = _inspected(work, keeps_bytes=True)

    assert report.counts == Counter(attempted=5, wrong=5)
    assert report.files_missing == ["config.json"]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_a_tensor_stored_as_what_holds_no_weights_is_wrong(work: Path, dtype: torch.dtype) -> None:
    merged = _right(work)
    merged[Q], merged["model.norm.weight"] = merged[Q].to(dtype), merged["model.norm.weight"].to(dtype)
    report = _judged(work, merged)

    assert report.counts == Counter(attempted=5, applied=4, wrong=1)
    assert report.dtype_changes == [Q, "model.norm.weight"]


def test_the_precision_of_a_product_is_that_of_autocast_where_there_is_one() -> None:
    hidden = torch.zeros(1, 2)

    assert precision_of(hidden) == "float32"
    assert precision_of(hidden.bfloat16()) == "bfloat16"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert precision_of(hidden) == "bfloat16"
        with torch.autocast("cpu", enabled=False):
            assert precision_of(hidden) == "float32"


@pytest.mark.parametrize(
    ("seen", "wanted", "value", "passed"),
    [
        ({"float32": 4}, "float32", 0, True),
        ({"bfloat16": 4}, "bfloat16", 0, True),
        ({"bfloat16": 1, "float32": 3}, "float32", 1, False),
        ({"float32": 4}, "bfloat16", 4, False),
        ({}, "float32", 0, False),
    ],
)
def test_calls_in_another_precision_are_counted(
    tmp_path: Path,
    seen: dict[str, int],
    wanted: str,
    value: int,
    passed: bool,
) -> None:
    observation = Observation(tmp_path / "observation.json")
    _check_precision(observation, SimpleNamespace(precisions=Counter(seen)), wanted)
    check, control = observation.data["checks"]

    assert (check["name"], check["value"], check["passed"]) == ("precision", value, passed)
    assert control["passed"], "one call in another dtype is rejected"


@pytest.mark.parametrize(
    ("exact_min", "elements", "band"),
    [
        (0.9999, 1_000_000, 0.9999),  # a hundred may be inexact
        (0.9999, 160_000, 0.9999),  # sixteen by either rule
        (0.9999, 40_000, 0.9996),  # sixteen, where the share would allow four
        (0.9999, 8, 0.0),
        (0.9999, 0, 0.9999),
        (0.5, 1_000, 0.5),
    ],
)
def test_a_few_elements_may_be_inexact_however_few_there_are(exact_min: float, elements: int, band: float) -> None:
    assert exact_band(exact_min, elements) == pytest.approx(band, abs=1e-12)
