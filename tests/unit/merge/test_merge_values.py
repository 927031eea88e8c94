"""Merged values against a float64 oracle, over layouts, packings, storage and patterns.

The oracle works from the definition.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Literal

import pytest
import torch
from format_samples import HIDDEN, Numbers, pair, small_base, write_adapter, write_base
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_samples import QUICK, Spec, assert_merged, bits, build, load

from harness.merge import audit, merge, plan_merge
from harness.merge.adapter.layout import IoLayout


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Anything that the layouts allow: square both ways, narrow, single experts, one parameter or both, in every format
    of the base.
    """
    family = draw(st.sampled_from(["plain", "plain", "plain", "mixtral", "gpt_oss"]))
    turned = family == "gpt_oss"
    formats = ["plain", "plain", "nf4", "fp4", "int8", "fp8"]
    base_format = draw(st.sampled_from(["plain", "mxfp4"] if turned else formats))
    hidden = draw(st.sampled_from([32, 64] if turned else [4, 6, 8]))
    width = 32 if turned else draw(st.sampled_from([3, hidden, hidden // 2]))
    io_layout = draw(st.sampled_from(["standard", "swapped"]))
    b_packing = draw(st.sampled_from(["rank_major", "grouped_by_expert"]))
    memory = "fused" if turned else draw(st.sampled_from(["fused", "fused", "linear"]))
    disk = {"mixtral": "per_expert", "gpt_oss": "fused"}.get(family) or draw(st.sampled_from(["per_expert", "fused"]))
    return Spec(
        experts=draw(st.integers(1, 2 if turned else 5)),
        rank=draw(st.integers(1, 3)),
        hidden=hidden,
        width=width,
        layers=1 if turned else 2,
        dense_layers=0 if turned else draw(st.integers(0, 1)),
        shards=draw(st.integers(1, 4)),
        dtype=draw(st.sampled_from(["float32", "bfloat16", "float16"])),
        disk=disk,
        memory=memory,
        disk_prefix=draw(st.sampled_from(["model.", "model.language_model."])),
        memory_prefix=draw(st.sampled_from(["model.", "model.language_model."])),
        parameters=draw(st.sampled_from([("gate_up_proj", "down_proj"), ("gate_up_proj",), ("down_proj",)])),
        io_layout=io_layout,
        b_packing=b_packing,
        nested=draw(st.sampled_from(["gate_up_proj", "down_proj"])),
        attention=draw(st.booleans()),
        shared=draw(st.booleans()),
        router=draw(st.booleans()),
        alpha=draw(st.sampled_from([1, 2.5, 16])),
        use_rslora=draw(st.booleans()),
        gate_up_rank=draw(st.sampled_from([None, 1, 4])) if memory == "fused" else None,
        gate_up_alpha=draw(st.sampled_from([None, 7])) if memory == "fused" else None,
        peft_version=None if turned else "0.19.1" if io_layout == "standard" else "0.18.1",
        marker=b_packing if b_packing == "grouped_by_expert" else draw(st.sampled_from([None, "rank_major"])),
        seed=draw(st.integers(0, 2**16)),
        family=family,
        base_format=base_format,
    )


def check_merge(spec: Spec) -> None:
    """Build, merge, and compare every tensor with base + delta in float64."""
    with tempfile.TemporaryDirectory(dir=QUICK) as name:
        folder = Path(name)
        sample = build(folder, spec)
        # Which way round an adapter on gpt_oss is depends on a transformers release that nothing records.
        flag: IoLayout | None = spec.io_layout if spec.family == "gpt_oss" else None  # type: ignore[assignment]  # one of the two

        plan = plan_merge(sample.base, sample.adapter, io_layout=flag)
        report = merge(plan, folder / "out")

        assert {row.key for row in plan.rows} == sample.deltas.keys()
        assert report.attempted == report.applied == len(sample.deltas)
        assert_merged(sample, folder / "out")


@settings(max_examples=200, deadline=None)
@given(specs())
def test_every_tensor_is_base_plus_delta_and_the_rest_is_the_base(spec: Spec) -> None:
    check_merge(spec)


VARIED = {
    "family": {"plain", "mixtral", "gpt_oss"}, "base_format": {"plain", "nf4", "fp4", "int8", "fp8", "mxfp4"},
    "dtype": {"float32", "bfloat16", "float16"},
    "experts": {1, 2, 3, 4, 5}, "rank": {1, 2, 3}, "hidden": {4, 6, 8, 32, 64}, "shards": {1, 2, 3, 4},
    "disk": {"per_expert", "fused"},
    "memory": {"fused", "linear"}, "io_layout": {"standard", "swapped"},
    "b_packing": {"rank_major", "grouped_by_expert"}, "gate_up_rank": {None, 1, 4},
    "gate_up_alpha": {None, 7}, "use_rslora": {True, False}, "disk_prefix": {"model.", "model.language_model."},
    "parameters": {("gate_up_proj", "down_proj"), ("gate_up_proj",), ("down_proj",)},
}  # fmt: skip
"""What must have been drawn, by field."""


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_two_thousand_merges_of_everything_that_can_vary() -> None:
    """The same property over ten times as many examples, which must have covered every value of every dimension."""
    seen: dict[str, set[object]] = {name: set() for name in VARIED}
    square: set[str] = set()

    @settings(max_examples=2000, deadline=None)
    @given(specs())
    def run(spec: Spec) -> None:
        for name, values in seen.items():
            values.add(getattr(spec, name))
        square.add("gate_up" if 2 * spec.width == spec.hidden else "down" if spec.width == spec.hidden else "neither")
        check_merge(spec)

    run()

    assert seen == VARIED
    assert square == {"gate_up", "down", "neither"}


@pytest.mark.parametrize("io_layout", ["standard", "swapped"])
@pytest.mark.parametrize("width", [3, 6])
def test_a_square_parameter_beside_a_non_square_one_is_settled_by_shape(
    tmp_path: Path, io_layout: str, width: int
) -> None:
    """With hidden 6, width 3 makes gate_up square, width 6 makes down square.

    The sibling shows the layout without any version.
    """
    sample = build(tmp_path, Spec(hidden=6, width=width, io_layout=io_layout, peft_version=None))

    plan = plan_merge(sample.base, sample.adapter)
    report = merge(plan, tmp_path / "out")

    assert report.to_json()["io_layout"] == {"value": io_layout, "by": "shape"}
    assert report.to_json()["b_packing"] == {"value": "rank_major", "by": "peft-default"}
    assert_merged(sample, tmp_path / "out")


@pytest.mark.parametrize(("io_layout", "version"), [("swapped", "0.19.0"), ("standard", "0.19.1")])
def test_a_lone_square_parameter_is_settled_by_the_peft_version(tmp_path: Path, io_layout: str, version: str) -> None:
    spec = Spec(hidden=6, width=3, parameters=("gate_up_proj",), io_layout=io_layout, peft_version=version)
    sample = build(tmp_path, spec)

    report = merge(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    assert report.to_json()["io_layout"] == {"value": io_layout, "by": "provenance"}
    assert_merged(sample, tmp_path / "out")


@pytest.mark.parametrize("io_layout", ["standard", "swapped"])
def test_a_lone_square_parameter_without_a_version_is_settled_by_the_flag(tmp_path: Path, io_layout: str) -> None:
    spec = Spec(hidden=6, width=6, parameters=("down_proj",), io_layout=io_layout, peft_version=None)
    sample = build(tmp_path, spec)

    plan = plan_merge(sample.base, sample.adapter, io_layout=io_layout)  # type: ignore[arg-type]  # parametrised text
    report = merge(plan, tmp_path / "out")

    assert report.to_json()["io_layout"] == {"value": io_layout, "by": "flag"}
    assert_merged(sample, tmp_path / "out")


def test_a_wrong_packing_flag_is_obeyed_counted_in_full_and_wrong(tmp_path: Path) -> None:
    """The engine cannot see this from the inside: its own count says everything was applied."""
    sample = build(tmp_path)

    plan = plan_merge(sample.base, sample.adapter, b_packing="grouped_by_expert")
    report = merge(plan, tmp_path / "out")

    assert report.applied == report.attempted == len(sample.deltas)
    assert report.to_json()["b_packing"] == {"value": "grouped_by_expert", "by": "flag"}
    with pytest.raises(AssertionError):
        assert_merged(sample, tmp_path / "out")


def test_counts_by_kind(tmp_path: Path) -> None:
    """2 layers, the first dense: q_proj in both; shared and dense MLPs have 3 Linears; 4 experts of 3 in one layer."""
    sample = build(tmp_path, Spec(dense_layers=1, router=True))

    report = merge(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    counts = {kind: count.attempted for kind, count in report.by_kind.items()}
    assert counts == {"attention": 2, "dense": 3, "shared_expert": 3, "router": 1, "expert": 12}


def test_an_expert_that_never_moved_is_counted_apart_and_keeps_its_bytes(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(zero_experts=(1,), dtype="bfloat16"))

    report = merge(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    assert (report.zero_delta, report.below_rounding) == (2 * 3, 0)
    assert report.applied == report.attempted - 6
    key = "model.layers.0.mlp.experts.1.up_proj.weight"
    assert torch.equal(bits(load(tmp_path / "out")[key]), bits(sample.tensors[key]))


def test_a_zero_adapter_gives_the_base_byte_for_byte_even_negative_zeros(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(shards=1))
    for key in sample.adapter_tensors:
        if key.endswith("lora_B.weight"):
            sample.adapter_tensors[key] = torch.zeros_like(sample.adapter_tensors[key])
    sample.save_adapter()
    path = sample.base / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = b"\x00\x00\x00\x80"  # -0.0 in the last float32 of the file
    path.write_bytes(content)

    report = merge(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    assert report.zero_delta == report.attempted == len(sample.deltas)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == bytes(content)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_element_whose_delta_is_zero_keeps_its_bits_beside_others_that_change(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Adding 0.0 to -0.0 gives 0.0. Rows 0 and 3 have no delta; the audit takes either zero for the right one."""
    numbers, key = Numbers(), "model.layers.0.self_attn.q_proj"
    base = {name: tensor.to(dtype) for name, tensor in small_base(numbers).items()}
    base[f"{key}.weight"][:, ::2] = -0.0
    base[f"{key}.weight"][:, 1] = 0.0
    lora = pair(numbers, key, 7, HIDDEN)
    lora[f"{key}.lora_B.weight"][[0, 3]] = 0.0
    folders = write_base(tmp_path / "base", base), write_adapter(tmp_path / "adapter", lora, lora_alpha=4)

    merge(plan_merge(*folders), tmp_path / "out")

    changed, before = load(tmp_path / "out")[f"{key}.weight"], base[f"{key}.weight"]
    assert torch.equal(bits(changed[[0, 3]]), bits(before[[0, 3]]))
    assert bool((changed[[1, 2, 4, 5, 6]] != before[[1, 2, 4, 5, 6]]).all())
    plain = {**load(tmp_path / "out"), f"{key}.weight": changed + 0.0}  # what an engine that adds zero writes
    for merged in (tmp_path / "out", write_base(tmp_path / "plain", plain)):
        rows = audit(*folders, merged).rows
        assert [(row.ok, row.detail, row.exact_share) for row in rows if row.targeted] == [(True, "bit-exact", 1.0)]


def test_a_delta_that_vanishes_in_the_dtype_is_counted_as_below_rounding(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(dtype="bfloat16", strength=1e-7))

    report = merge(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    assert report.below_rounding == report.attempted == len(sample.deltas)
    for key, tensor in load(tmp_path / "out").items():
        assert torch.equal(bits(tensor), bits(sample.tensors[key])), key


@pytest.mark.parametrize("disk", ["per_expert", "fused"])
@pytest.mark.parametrize(
    ("stored", "wanted"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float32", "float16")]
)
def test_a_dtype_override_converts_what_changes_and_nothing_else(
    tmp_path: Path, stored: str, wanted: str, disk: str
) -> None:
    sample = build(tmp_path, Spec(dtype=stored, disk=disk, strength=0.1))

    plan = plan_merge(sample.base, sample.adapter, dtype=wanted)  # type: ignore[arg-type]  # parametrised text
    merge(plan, tmp_path / "out")

    assert_merged(sample, tmp_path / "out", dtype=getattr(torch, wanted))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert config["torch_dtype"] == wanted
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in load(tmp_path / "out").values())


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_the_experts_of_a_fused_tensor_that_no_linear_pair_reaches_keep_their_values(
    tmp_path: Path, dtype: Literal["float16"] | None
) -> None:
    """Some of the Linears that transformers 4.x has, merged into a fused base."""
    sample = build(tmp_path, Spec(memory="linear", disk="fused", attention=False, shared=False))
    keep = {f"mlp.experts.{e}.{leaf}" for e in (0, 2) for leaf in ("gate_proj", "down_proj")}
    sample.adapter_tensors = {
        key: tensor for key, tensor in sample.adapter_tensors.items() if any(f"{name}." in key for name in keep)
    }
    sample.config["target_modules"] = [name.removeprefix("mlp.") for name in sorted(keep)]
    sample.save_adapter()
    for key, delta in sample.deltas.items():
        delta[[1, 3]] = 0
        if key.endswith("gate_up_proj"):
            delta[:, 5:] = 0

    report = merge(plan_merge(sample.base, sample.adapter, dtype=dtype), tmp_path / "out")

    assert report.attempted == report.applied == 4
    assert_merged(sample, tmp_path / "out", dtype=torch.float16 if dtype else None)


def test_merging_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(dtype="bfloat16"))

    for name in ("first", "second"):
        merge(plan_merge(sample.base, sample.adapter), tmp_path / name)

    first, second = (
        {p.name: p.read_bytes() for p in (tmp_path / n).iterdir() if p.is_file()} for n in ("first", "second")
    )
    assert first == second


def test_rows_are_handled_in_pieces_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = build(tmp_path, Spec(disk="fused"))
    plan = plan_merge(sample.base, sample.adapter, dtype="float16")
    whole = merge(plan, tmp_path / "whole")

    monkeypatch.setattr("harness.merge.write.shards.CHUNK_ELEMENTS", 7)
    pieces = merge(plan, tmp_path / "out")

    assert_merged(sample, tmp_path / "out", dtype=torch.float16)
    assert pieces.bytes_written == whole.bytes_written
    assert pieces.bytes_decoded == whole.bytes_decoded
