"""What the audit says of merges made by hand, each with one thing wrong, over the layouts that checkpoints have.

The merges are computed here in float64 from the samples' own deltas (``merge_samples``), never by the engine, and are
written with the safetensors library.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_samples import QUICK, Sample, Spec, build, leaves, pack, product
from safetensors.torch import save_file

from harness.merge import AuditReport, InputRefusedError, UsageError, audit
from harness.merge.auditing.tensor_verdict import TensorVerdict

Change = Callable[[str, torch.Tensor, np.ndarray], torch.Tensor]
FORMS = [("float32", "per_expert"), ("float32", "fused"), ("bfloat16", "per_expert"), ("bfloat16", "fused")]


def once(base: torch.Tensor, delta: np.ndarray, scale: float = 1.0) -> torch.Tensor:
    """Base + scale * delta in float64, rounded once."""
    return (base.double() + scale * torch.tensor(delta)).to(base.dtype)


def tensors_of(sample: Sample, change: Change | None = None) -> dict[str, torch.Tensor]:
    """The merged tensors, with ``change`` in place of the right merge for those it is asked about."""
    merged = dict(sample.tensors)
    for key, delta in sample.deltas.items():
        merged[key] = (change or (lambda _, base, delta: once(base, delta)))(key, sample.tensors[key], delta)
    return merged


def write(sample: Sample, tensors: dict[str, torch.Tensor], name: str = "merged") -> Path:
    """A merged directory beside the base: its other files and one file of weights."""
    out = sample.base.parent / name
    shutil.copytree(
        sample.base, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json")
    )
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, out / "model.safetensors")
    return out


def audited(sample: Sample, tensors: dict[str, torch.Tensor]) -> AuditReport:
    return audit(sample.base, sample.adapter, write(sample, tensors))


def rows_of(report: AuditReport, kind: str = "expert") -> list[TensorVerdict]:
    return [row for row in report.rows if row.targeted and row.kind == kind]


def only_experts(change: Change) -> Change:
    return lambda key, base, delta: change(key, base, delta) if ".experts." in key else once(base, delta)


@pytest.mark.parametrize(("dtype", "disk"), FORMS)
def test_a_right_merge(tmp_path: Path, dtype: str, disk: str) -> None:
    sample = build(tmp_path, Spec(dtype=dtype, disk=disk))

    report = audited(sample, tensors_of(sample))

    assert report.ok
    assert report.exit_code == 0
    assert {row.key for row in report.rows if row.targeted} == sample.deltas.keys()
    assert {row.key for row in report.rows} == sample.tensors.keys()
    assert {row.verdict for row in report.rows} == {"applied", "same"}
    assert report.sentence.endswith("→ the adapter is merged")


@pytest.mark.parametrize(("dtype", "disk"), FORMS)
def test_a_copy_of_the_base(tmp_path: Path, dtype: str, disk: str) -> None:
    sample = build(tmp_path, Spec(dtype=dtype, disk=disk))

    report = audit(sample.base, sample.adapter, sample.base)

    assert {row.verdict for row in report.rows if row.targeted} == {"untouched"}
    assert report.exit_code == 1
    assert report.sentence.endswith("→ the whole adapter was dropped: this is the base")


@pytest.mark.parametrize(("dtype", "disk"), FORMS)
def test_dropped_experts(tmp_path: Path, dtype: str, disk: str) -> None:
    sample = build(tmp_path, Spec(dtype=dtype, disk=disk))
    count = sum(".experts." in key for key in sample.deltas)

    report = audited(sample, tensors_of(sample, only_experts(lambda _key, base, _delta: base)))

    assert report.sentence == (
        f"attention 2/2 applied, experts 0/{count} applied (untouched: {count}), shared experts 6/6 applied"
        " → the expert adapter was dropped"
    )
    assert report.exit_code == 1


def test_one_expert_skipped_where_experts_are_stored_one_by_one(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())

    def skip(key: str, base: torch.Tensor, delta: np.ndarray) -> torch.Tensor:
        return base if "layers.1.mlp.experts.2." in key else once(base, delta)

    report = audited(sample, tensors_of(sample, skip))

    assert {row.key for row in report.faults} == {
        f"model.layers.1.mlp.experts.2.{leaf}.weight" for leaf in ("gate_proj", "up_proj", "down_proj")
    }
    assert {row.verdict for row in report.faults} == {"untouched"}
    assert "3 expert tensors were left out" in report.sentence


def test_one_expert_skipped_in_a_fused_tensor(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(disk="fused"))

    def skip(key: str, base: torch.Tensor, delta: np.ndarray) -> torch.Tensor:
        result = once(base, delta)
        if key.endswith("layers.1.mlp.experts.down_proj"):
            result[2] = base[2]
        return result

    (row,) = audited(sample, tensors_of(sample, skip)).faults

    assert row.key.endswith("layers.1.mlp.experts.down_proj")
    assert row.verdict == "untouched"
    assert row.slices == {"applied": 3, "untouched": 1}
    assert row.at_fault == (2,)


def misread(
    sample: Sample, spec: Spec, read: Callable[[torch.Tensor, torch.Tensor, int], list[np.ndarray]]
) -> dict[str, np.ndarray]:
    """The deltas of all expert tensors as another reading of the flat lora_A and lora_B gives them."""
    found: dict[str, np.ndarray] = {}
    for layer in range(spec.layers):
        stem = f"model.layers.{layer}.mlp.experts"
        for parameter, module in (("gate_up_proj", f"{stem}.base_layer"), ("down_proj", stem)):
            flat_a = sample.adapter_tensors[f"base_model.model.{module}.lora_A.weight"].double()
            flat_b = sample.adapter_tensors[f"base_model.model.{module}.lora_B.weight"].double()
            deltas = read(flat_a, flat_b, spec.experts)
            if spec.disk == "fused":
                found[f"{stem}.{parameter}"] = np.stack(deltas)
                continue
            for expert, delta in enumerate(deltas):
                for leaf, part in zip(leaves(parameter), np.split(delta, len(leaves(parameter))), strict=True):
                    found[f"{stem}.{expert}.{leaf}.weight"] = part
    return found


def as_grouped(flat_a: torch.Tensor, flat_b: torch.Tensor, experts: int) -> list[np.ndarray]:
    """lora_B's columns taken as consecutive per expert, though they are rank-major."""
    rank = flat_a.shape[0] // experts
    parts = [(flat_b[:, e * rank : (e + 1) * rank], flat_a[e * rank : (e + 1) * rank]) for e in range(experts)]
    return [product(b.numpy(), a.numpy(), 3 / rank) for b, a in parts]


def as_transposed(flat_a: torch.Tensor, flat_b: torch.Tensor, experts: int) -> list[np.ndarray]:
    """Each expert's delta transposed where it is square, right where it is not."""
    rank = flat_a.shape[0] // experts
    parts = [(flat_b[:, e::experts], flat_a[e * rank : (e + 1) * rank]) for e in range(experts)]
    deltas = [product(b.numpy(), a.numpy(), 3 / rank) for b, a in parts]
    return [delta.T if delta.shape[0] == delta.shape[1] else delta for delta in deltas]


@pytest.mark.parametrize(("dtype", "disk"), FORMS)
def test_a_permuted_packing(tmp_path: Path, dtype: str, disk: str) -> None:
    spec = Spec(dtype=dtype, disk=disk)
    sample = build(tmp_path, spec)
    wrong = misread(sample, spec, as_grouped)

    report = audited(sample, tensors_of(sample, lambda key, base, delta: once(base, wrong.get(key, delta))))

    assert {(row.verdict, row.detail) for row in rows_of(report)} == {("scrambled", "lora_B read as grouped_by_expert")}
    assert {row.verdict for row in report.rows if row.targeted and row.kind != "expert"} == {"applied"}
    assert "scrambled (lora_B read as grouped_by_expert)" in report.sentence


@pytest.mark.parametrize(("dtype", "disk"), FORMS)
@pytest.mark.parametrize("width", [3, 6])
def test_the_other_io_layout_of_a_square_parameter(tmp_path: Path, dtype: str, disk: str, width: int) -> None:
    """With hidden 6, width 3 makes gate_up_proj square and width 6 makes down_proj square."""
    spec = Spec(dtype=dtype, disk=disk, hidden=6, width=width)
    sample = build(tmp_path, spec)
    wrong = misread(sample, spec, as_transposed)

    report = audited(sample, tensors_of(sample, lambda key, base, delta: once(base, wrong.get(key, delta))))

    square = ("gate_up_proj", "gate_proj", "up_proj") if width == 3 else ("down_proj",)
    for row in rows_of(report):
        name = row.key.removesuffix(".weight").rpartition(".")[2]
        expected = ("scrambled", "io layout read as swapped") if name in square else ("applied", row.detail)
        assert (row.verdict, row.detail) == expected, row.key


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transposed_square_linears(tmp_path: Path, dtype: str) -> None:
    """gate_proj of shared experts is square here; one layer's delta was transposed, the other's whole weight."""
    sample = build(tmp_path, Spec(dtype=dtype, hidden=6, width=5))
    first, second = (f"model.layers.{layer}.mlp.shared_experts.gate_proj.weight" for layer in (0, 1))

    def turn(key: str, base: torch.Tensor, delta: np.ndarray) -> torch.Tensor:
        if key == first:
            return once(base, delta.T)
        return once(base, delta).T if key == second else once(base, delta)

    faults = {row.key: (row.verdict, row.detail) for row in audited(sample, tensors_of(sample, turn)).faults}

    assert faults == {
        first: ("scrambled", "the delta transposed"),
        second: ("scrambled", "the weight stored transposed"),
    }


@pytest.mark.parametrize(("dtype", "disk"), FORMS)
@pytest.mark.parametrize("scale", [0.5, 2.0, -1.0, 0.9])
def test_another_scale(tmp_path: Path, dtype: str, disk: str, scale: float) -> None:
    sample = build(tmp_path, Spec(dtype=dtype, disk=disk, hidden=24, width=16))

    report = audited(sample, tensors_of(sample, only_experts(lambda _, base, delta: once(base, delta, scale))))

    assert {row.verdict for row in rows_of(report)} == {"partial"}
    for row in rows_of(report):
        assert row.scale == pytest.approx(scale, abs=2e-3)
    assert f"applied at {scale:g} times the scale" in report.sentence


@pytest.mark.parametrize(("dtype", "disk"), FORMS)
def test_experts_in_another_order(tmp_path: Path, dtype: str, disk: str) -> None:
    """Layer 0: deltas given to the wrong experts. Layer 1: whole experts exchanged."""
    sample = build(tmp_path, Spec(dtype=dtype, disk=disk, hidden=12, width=10))
    right = tensors_of(sample)
    merged = dict(right)
    order = [2, 0, 3, 1]
    for layer, parameter in ((layer, name) for layer in (0, 1) for name in ("gate_up_proj", "down_proj")):
        stem = f"model.layers.{layer}.mlp.experts"
        for e, other in enumerate(order):
            keys = [(f"{stem}.{parameter}", f"{stem}.{parameter}")]
            if disk == "per_expert":
                keys = [(f"{stem}.{e}.{leaf}.weight", f"{stem}.{other}.{leaf}.weight") for leaf in leaves(parameter)]
            for mine, theirs in keys:
                if disk == "per_expert":
                    base, delta = sample.tensors[mine], sample.deltas[theirs]
                    merged[mine] = once(base, delta) if layer == 0 else right[theirs]
                else:
                    if e == 0:
                        merged[mine] = right[mine].clone()
                    base, delta = sample.tensors[mine][e], sample.deltas[mine][other]
                    merged[mine][e] = once(base, delta) if layer == 0 else right[mine][other]

    report = audited(sample, merged)

    assert {row.verdict for row in rows_of(report)} == {"scrambled"}
    for row in rows_of(report):
        told = "the delta of expert" if row.layer == 0 else "the weights of expert"
        assert told in (row.detail or "")
        if row.expert is not None:
            assert f"of expert {order[row.expert]}" in (row.detail or "")
    assert "(experts in another order)" in report.sentence


def test_gate_and_up_exchanged(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())
    other = {"gate_proj": "up_proj", "up_proj": "gate_proj"}

    def exchange(key: str, base: torch.Tensor, delta: np.ndarray) -> torch.Tensor:
        leaf = key.split(".")[-2]
        return once(base, sample.deltas[key.replace(leaf, other[leaf])]) if leaf in other else once(base, delta)

    report = audited(sample, tensors_of(sample, only_experts(exchange)))

    assert {(row.verdict, row.detail) for row in report.faults} == {("scrambled", "gate and up exchanged")}
    assert len(report.faults) == 16


@pytest.mark.parametrize("strength", [1.0, 0.02])
def test_a_delta_that_was_rounded_before_it_was_added(tmp_path: Path, strength: float) -> None:
    """PEFT's way in bfloat16: the delta rounded to bfloat16, the sum rounded again."""
    sample = build(tmp_path, Spec(dtype="bfloat16", hidden=48, width=40, strength=strength))

    def twice(_key: str, base: torch.Tensor, delta: np.ndarray) -> torch.Tensor:
        rounded = torch.tensor(delta).to(torch.bfloat16)
        return (base.double() + rounded.double()).to(torch.bfloat16)

    report = audited(sample, tensors_of(sample, twice))

    assert report.ok
    assert {row.detail for row in rows_of(report)} == {"bf16-double-rounded"}
    for row in rows_of(report):
        exact = (tensors_of(sample)[row.key] == twice(row.key, sample.tensors[row.key], sample.deltas[row.key])).float()
        assert row.exact_share == pytest.approx(float(exact.mean()), abs=2e-3)


def test_a_merge_in_lower_precision_is_told_from_another_scale(tmp_path: Path) -> None:
    """Factors in bfloat16, scaled after the product, in a float32 checkpoint."""
    sample = build(tmp_path, Spec(hidden=48, width=40))

    def coarse(_key: str, base: torch.Tensor, delta: np.ndarray) -> torch.Tensor:
        return base + torch.tensor(delta).to(torch.bfloat16).float()

    report = audited(sample, tensors_of(sample, coarse))

    assert report.ok
    assert {row.detail for row in rows_of(report)} == {"low-precision"}


@pytest.mark.parametrize("strength", [0.004, 0.02])
@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_small_deltas_in_bfloat16_still_tell_dropped_and_halved(tmp_path: Path, strength: float, scale: float) -> None:
    """Where most elements do not move at all, the base lies within one unit of the right result everywhere."""
    sample = build(tmp_path, Spec(dtype="bfloat16", hidden=96, width=80, experts=2, strength=strength))
    merged = tensors_of(sample, only_experts(lambda _, base, delta: once(base, delta, scale)))

    verdicts = {row.verdict for row in rows_of(audited(sample, merged))}

    assert verdicts == ({"untouched"} if scale == 0 else {"partial"})


@pytest.mark.parametrize("disk", ["per_expert", "fused"])
def test_zero_and_vanishing_deltas_are_not_dropped(tmp_path: Path, disk: str) -> None:
    zero = build(tmp_path / "zero", Spec(disk=disk, zero_experts=(0, 1, 2, 3)))
    tiny = build(tmp_path / "tiny", Spec(disk=disk, dtype="bfloat16", strength=1e-7))

    assert {(row.verdict, row.detail) for row in rows_of(audited(zero, tensors_of(zero)))} == {
        ("indistinguishable", "zero-delta")
    }
    report = audit(tiny.base, tiny.adapter, tiny.base)
    assert {(row.verdict, row.detail) for row in rows_of(report)} == {("indistinguishable", "below-rounding")}
    assert report.exit_code == 0
    assert report.sentence.endswith("→ nothing that the adapter changes can be told from the base")


def test_one_zero_expert_in_a_fused_tensor_does_not_hide_the_others(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(disk="fused", zero_experts=(1,)))

    report = audited(sample, tensors_of(sample))

    assert report.ok
    assert {row.verdict for row in rows_of(report)} == {"applied"}
    assert rows_of(report)[0].slices == {"applied": 3, "indistinguishable": 1}


def test_noise_is_wrong_and_nan_is_named(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())
    merged = tensors_of(sample)
    first, second, third = (f"model.layers.0.mlp.experts.{e}.down_proj.weight" for e in (0, 1, 2))
    merged[first] = merged[first] + torch.randn(merged[first].shape, generator=torch.Generator().manual_seed(0))
    merged[second] = merged[second].clone()
    merged[second][0, 0] = float("nan")
    merged[third] = torch.cat([merged[third][:2], sample.tensors[third][2:]])

    faults = {row.key: row for row in audited(sample, merged).faults}

    assert {row.verdict for row in faults.values()} == {"wrong"}
    assert "neither the base" in (faults[first].detail or "")
    assert faults[second].detail == "holds NaN or infinity"
    assert faults[third].detail == "4 of 6 rows are still the base's, 2 are base + delta"


def test_missing_changed_and_unexpected_tensors(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())
    merged = tensors_of(sample)
    del merged["model.layers.0.self_attn.q_proj.weight"], merged["mtp.layers.0.self_attn.q_proj.weight"]
    merged["model.norm.weight"] = merged["model.norm.weight"] * 2
    merged["model.layers.0.self_attn.q_proj.base_layer.weight"] = torch.ones(2, 2)
    merged["model.layers.1.self_attn.q_proj.weight"] = torch.ones(3, 6)

    report = audited(sample, merged)

    assert {row.key: (row.verdict, row.detail) for row in report.faults} == {
        "model.layers.0.self_attn.q_proj.weight": ("missing", "absent"),
        "model.layers.1.self_attn.q_proj.weight": ("wrong", "shape [3, 6] instead of [7, 6]"),
        "mtp.layers.0.self_attn.q_proj.weight": ("changed", "absent"),
        "model.norm.weight": ("changed", "not the base's values"),
    }
    assert report.unexpected == ("model.layers.0.self_attn.q_proj.base_layer.weight",)
    assert "2 tensors that the adapter does not cover are not the base's (1 absent)" in report.sentence


def test_tensors_of_the_adapter_that_were_left_in_are_named(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())
    merged = tensors_of(sample)
    stem = "model.layers.0.self_attn.q_proj"
    for name in ("lora_A.default", "lora_B.default"):
        merged[f"{stem}.{name}.weight"] = torch.ones(2, 2)

    report = audited(sample, merged)

    assert report.ok
    assert report.unexpected == (f"{stem}.lora_A.default.weight", f"{stem}.lora_B.default.weight")
    (note,) = [note for note in report.notes if "adapter" in note]
    assert note.startswith("tensors of an adapter lie beside the merged ones")
    assert f"{stem}.lora_B.default.weight" in note


@pytest.mark.parametrize("disk", ["per_expert", "fused"])
@pytest.mark.parametrize("stale", ["prefix", "experts"])
def test_a_second_copy_under_another_name_or_in_another_form_is_a_finding(
    tmp_path: Path, disk: str, stale: str
) -> None:
    spec = Spec(disk=disk)
    sample = build(tmp_path, spec)
    merged = tensors_of(sample)
    other = {"per_expert": "fused", "fused": "per_expert"}[disk] if stale == "experts" else disk
    prefix = "model." if stale == "experts" else "model.language_model."
    second = refused_form(sample.tensors, spec, prefix=prefix, disk=other)
    copies = {key: tensor.clone() for key, tensor in second.items() if key not in merged and not key.startswith("mtp.")}

    report = audited(sample, {**merged, **copies})
    extra = audited(sample, {**merged, "model.layers.0.mlp.experts.99.down_proj.weight": torch.ones(6, 5)})

    assert copies
    assert report.faults == ()
    (problem,) = report.index_problems
    assert problem.startswith("tensors are there under two names or in two forms")
    assert min(copies) in problem
    assert report.exit_code == 1
    assert (extra.index_problems == ()) is (disk == "per_expert")


def test_base_and_merged_exchanged(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())
    merged = write(sample, tensors_of(sample))
    hint = "the base and the merged checkpoint look exchanged"

    exchanged = audit(merged, sample.adapter, sample.base)
    negated = audited(sample, tensors_of(sample, only_experts(lambda _, base, delta: once(base, delta, -1.0))))

    assert hint in exchanged.sentence
    assert exchanged.exit_code == 1
    assert hint not in negated.sentence


def test_an_adapter_is_no_merged_checkpoint(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())

    with pytest.raises(UsageError, match=r"holds an adapter \(adapter_config\.json\), not a merged checkpoint"):
        audit(sample.base, sample.adapter, sample.adapter)
    with pytest.raises(UsageError, match=r"the merged checkpoint directory .* does not exist"):
        audit(sample.base, sample.adapter, tmp_path / "nowhere")


def refused_form(tensors: dict[str, torch.Tensor], spec: Spec, *, prefix: str, disk: str) -> dict[str, torch.Tensor]:
    """The same checkpoint with another prefix and the experts stored in the other form."""
    moved: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        stem = key.removeprefix("model.")
        if ".experts." not in key or disk == spec.disk:
            moved[f"{prefix}{stem}" if key.startswith("model.") else key] = tensor
            continue
        path, _, parameter = stem.rpartition(".")
        if disk == "per_expert":
            for e in range(spec.experts):
                for leaf, part in zip(leaves(parameter), tensor[e].chunk(len(leaves(parameter))), strict=True):
                    moved[f"{prefix}{path}.{e}.{leaf}.weight"] = part
            continue
        layer = key.split(".")[2]
        for name in ("gate_up_proj", "down_proj"):
            each = [
                torch.cat([tensors[f"model.layers.{layer}.mlp.experts.{e}.{leaf}.weight"] for leaf in leaves(name)])
                for e in range(spec.experts)
            ]
            moved[f"{prefix}layers.{layer}.mlp.experts.{name}"] = torch.stack(each)
    return moved


@pytest.mark.parametrize(("dtype", "disk"), FORMS)
@pytest.mark.parametrize("dropped", [False, True])
def test_the_other_form_of_experts_under_another_prefix(
    tmp_path: Path, dtype: str, disk: str, *, dropped: bool
) -> None:
    spec = Spec(dtype=dtype, disk=disk)
    sample = build(tmp_path, spec)
    change = only_experts(lambda _, base, __: base) if dropped else None
    other = "fused" if disk == "per_expert" else "per_expert"
    moved = refused_form(tensors_of(sample, change), spec, prefix="model.language_model.", disk=other)

    report = audited(sample, moved)

    assert report.unexpected == ()
    assert {row.verdict for row in rows_of(report)} == ({"untouched"} if dropped else {"applied"})
    assert {row.verdict for row in report.rows if not row.targeted} == {"same"}
    assert report.ok is not dropped
    told = "one tensor per expert" if other == "per_expert" else "one tensor per expert stored as fused experts"
    assert any(told in line for line in report.equivalents)
    assert any(line.startswith("model.* stored as model.language_model.*") for line in report.equivalents)


@pytest.mark.parametrize(
    ("stored", "written"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "float16")]
)
def test_another_dtype_is_compared_in_that_dtype(tmp_path: Path, stored: str, written: str) -> None:
    sample = build(tmp_path, Spec(dtype=stored, strength=0.1))
    dtype = getattr(torch, written)
    merged = {key: tensor.to(dtype) for key, tensor in sample.tensors.items()}
    for key, delta in sample.deltas.items():
        merged[key] = (sample.tensors[key].double() + torch.tensor(delta)).to(dtype)

    report = audited(sample, merged)
    base_only = audit(
        sample.base, sample.adapter, write(sample, {k: t.to(dtype) for k, t in sample.tensors.items()}, "copy")
    )

    assert report.ok, report.faults
    assert len(report.dtype_changes) >= 1
    assert {row.verdict for row in base_only.rows if row.targeted} == {"untouched"}


def test_index_faults_are_findings(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(shards=2))
    out = write(sample, tensors_of(sample))
    keys = list(sample.tensors)
    weight_map = dict.fromkeys(keys[:-1], "model.safetensors") | {"gone": "model-9.safetensors"}
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    report = audit(sample.base, sample.adapter, out)

    assert report.exit_code == 1
    assert report.faults == ()
    told = " ".join(report.index_problems)
    assert "model-9.safetensors, which is not there" in told
    assert keys[-1] in told
    assert report.sentence.endswith("the index and the shards disagree")


@pytest.mark.parametrize(
    ("remove", "add", "missing"),
    [
        ("generation_config.json", {}, ("generation_config.json",)),
        ("tokenizer.json", {}, ("tokenizer.json",)),
        ("chat_template.jinja", {}, ("the chat template",)),
        ("chat_template.jinja", {"tokenizer_config.json": '{"chat_template": "x"}'}, ()),
        ("assets/note.txt", {}, ()),
    ],
)
def test_missing_files(tmp_path: Path, remove: str, add: dict[str, str], missing: tuple[str, ...]) -> None:
    sample = build(tmp_path, Spec())
    out = write(sample, tensors_of(sample))
    (out / remove).unlink()
    for name, text in add.items():
        (out / name).write_text(text)

    report = audit(sample.base, sample.adapter, out)

    assert report.missing_files == missing
    assert report.exit_code == (1 if missing else 0)
    assert (remove in report.other_files) is (remove == "assets/note.txt")


def test_pickles_and_corrupt_headers_are_refused(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())
    pickle, corrupt = tmp_path / "pickle", tmp_path / "corrupt"
    for folder in (pickle, corrupt):
        folder.mkdir()
    (pickle / "pytorch_model.bin").write_bytes(b"x")
    (corrupt / "model.safetensors").write_bytes(b"\xff" * 64)

    for folder in (pickle, corrupt):
        with pytest.raises(InputRefusedError) as caught:
            audit(sample.base, sample.adapter, folder)
        assert caught.value.exit_code == 5


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_fault_in_any_tensor_is_found_and_no_other_is_reported(data: st.DataObject) -> None:
    import tempfile  # noqa: PLC0415 - only here

    spec = Spec(
        experts=data.draw(st.integers(1, 4)), rank=data.draw(st.integers(1, 3)),
        hidden=data.draw(st.sampled_from([6, 8])),
        width=data.draw(st.sampled_from([3, 5, 8])), disk=data.draw(st.sampled_from(["per_expert", "fused"])),
        dtype=data.draw(st.sampled_from(["float32", "bfloat16"])), layers=1, seed=data.draw(st.integers(0, 999)),
        memory=data.draw(st.sampled_from(["fused", "linear"])), io_layout="standard",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=QUICK) as name:
        sample = build(Path(name), spec)
        victim = data.draw(st.sampled_from(sorted(sample.deltas)))
        fault = data.draw(st.sampled_from(["copy", "double", "noise"]))
        merged = tensors_of(sample)
        base, delta = sample.tensors[victim], sample.deltas[victim]
        if fault == "noise":
            rough = np.random.default_rng(spec.seed).standard_normal(delta.shape)
            merged[victim] = once(base, delta + 0.5 * rough)
        else:
            merged[victim] = once(base, delta, {"copy": 0.0, "double": 2.0}[fault])

        report = audited(sample, merged)

    assert [row.key for row in report.faults] == [victim]
    assert report.faults[0].verdict == {"copy": "untouched", "double": "partial", "noise": "wrong"}[fault]


def test_the_report_as_json(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(disk="fused"))

    values = json.loads(json.dumps(audit(sample.base, sample.adapter, sample.base).to_json()))

    assert values["ok"] is False
    assert values["by_kind"]["expert"] == {"untouched": 4}
    assert len(values["rows"]) == len(sample.tensors)
    assert values["io_layout"] == {"value": "standard", "by": "shape"}


def test_an_adapter_that_covers_only_gate_up(tmp_path: Path) -> None:
    """A swapped adapter packed by expert, on one of the two parameters."""
    spec = replace(
        Spec(), parameters=("gate_up_proj",), io_layout="swapped", peft_version="0.18.1", marker="grouped_by_expert",
        b_packing="grouped_by_expert", disk="fused",
    )  # fmt: skip
    sample = build(tmp_path, spec)

    report = audited(sample, tensors_of(sample))

    assert report.ok
    assert report.b_packing is not None
    assert report.b_packing.by == "marker"
    assert pack([np.ones((1, 2))], [np.ones((3, 1))], io_layout="swapped", b_packing="rank_major")[0].shape == (1, 3)
