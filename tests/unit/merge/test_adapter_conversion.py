"""Adapters rewritten in other layouts: the same deltas by plain loops, the same bytes on the way back, refusal where
something is lost.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_samples import QUICK, Sample, Spec, assert_merged, build, product
from safetensors.torch import load_file, save_file

from harness.merge import InputRefusedError, UsageError, merge, plan_merge
from harness.merge.adapter_tools.convert import convert_adapter
from harness.merge.adapter_tools.inspection import inspect_adapter
from harness.merge.errors import (
    AmbiguousLayoutError,
    InputNotFoundError,
    MalformedAdapterError,
    OutputExistsError,
    UnsupportedAdapterError,
)

VERSIONS = {"standard": "0.19.1", "swapped": "0.18.1"}


def fused(layout: str, packing: str, **more: object) -> Spec:
    marker = packing if packing == "grouped_by_expert" else None
    return Spec(io_layout=layout, b_packing=packing, marker=marker, peft_version=VERSIONS[layout], **more)  # type: ignore[arg-type]  # passed through


def check_merge(sample: Sample, adapter: Path, out: Path) -> None:
    """The converted adapter must merge into the values that the original's factors define."""
    merge(plan_merge(sample.base, adapter), out)
    assert_merged(sample, out)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    hidden = draw(st.sampled_from([4, 6, 8]))
    return fused(
        draw(st.sampled_from(["standard", "swapped"])),
        draw(st.sampled_from(["rank_major", "grouped_by_expert"])),
        experts=draw(st.integers(1, 4)),
        rank=draw(st.integers(1, 3)),
        hidden=hidden,
        width=draw(st.sampled_from([3, hidden, hidden // 2])),
        layers=draw(st.integers(1, 2)),
        nested=draw(st.sampled_from(["gate_up_proj", "down_proj"])),
        shared=draw(st.booleans()),
        use_rslora=draw(st.booleans()),
        gate_up_rank=draw(st.sampled_from([None, 1, 4])),
        gate_up_alpha=draw(st.sampled_from([None, 7])),
        seed=draw(st.integers(0, 999)),
    )


@settings(max_examples=60, deadline=None)
@given(specs(), st.data())
def test_any_conversion_keeps_every_delta_and_its_way_back_the_bytes(spec: Spec, data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(["standard", "swapped"]))
    packing = data.draw(st.sampled_from(["rank_major", "grouped_by_expert"]))
    with tempfile.TemporaryDirectory(dir=QUICK) as name:
        folder = Path(name)
        sample = build(folder, spec)
        convert_adapter(sample.adapter, folder / "there", to_io_layout=layout, to_b_packing=packing)
        convert_adapter(
            folder / "there",
            folder / "back",
            to_io_layout=spec.io_layout,
            to_b_packing=spec.b_packing,  # type: ignore[arg-type]  # one of the two
        )
        convert_adapter(sample.adapter, folder / "single", to_experts="per-expert")
        convert_adapter(
            folder / "single", folder / "whole", to_experts="fused", to_io_layout=spec.io_layout,
            to_b_packing=spec.b_packing  # type: ignore[arg-type]  # one of the two
        )  # fmt: skip

        for converted in ("there", "single"):
            check_merge(sample, folder / converted, folder / f"merged-{converted}")
        for returned in ("back",) if spec.nested == "down_proj" else ("back", "whole"):
            for path in sample.adapter.iterdir():
                assert (folder / returned / path.name).read_bytes() == path.read_bytes(), (returned, path.name)
            assert not (folder / returned / "conversion.json").exists()


@pytest.mark.parametrize("layout", ["standard", "swapped"])
def test_linears_of_their_own_lora_a_become_a_block_diagonal_pair(tmp_path: Path, layout: str) -> None:
    """gate_proj and up_proj were trained apart, as transformers 4 does it: the rank doubles, no value changes."""
    sample = build(tmp_path, Spec(memory="linear", rank=2, alpha=5))

    convert_adapter(sample.adapter, tmp_path / "fused", to_experts="fused", to_io_layout=layout)  # type: ignore[arg-type]  # one of the two

    check_merge(sample, tmp_path / "fused", tmp_path / "merged")
    config = json.loads((tmp_path / "fused" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "fused" / "adapter_model.safetensors")
    assert config["peft_version"] == VERSIONS[layout]
    assert {key.split("experts.")[1] for key in tensors if ".experts." in key} == {
        "base_layer.lora_A.weight", "base_layer.lora_B.weight", "lora_A.weight", "lora_B.weight",
    }  # fmt: skip
    assert tensors["base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight"].shape[0] == 4 * 2 * 2
    assert tensors["base_model.model.model.layers.0.mlp.experts.lora_A.weight"].shape[0] == 4 * 2
    assert "model.layers.0.mlp.experts.gate_up_proj" in config["target_parameters"]
    assert not any("experts." in name and "shared" not in name for name in config["target_modules"] or [])


def test_the_values_of_a_swapped_pair_by_hand(tmp_path: Path) -> None:
    """One converted expert, its delta multiplied out from the new matrices by the definition of the new layout."""
    sample = build(tmp_path, fused("swapped", "rank_major", experts=3, rank=2))
    convert_adapter(sample.adapter, tmp_path / "out", to_io_layout="standard", to_b_packing="grouped_by_expert")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")

    flat_a = tensors["base_model.model.model.layers.1.mlp.experts.lora_A.weight"].double().numpy()
    flat_b = tensors["base_model.model.model.layers.1.mlp.experts.lora_B.weight"].double().numpy()
    for e in range(3):
        delta = product(flat_b[:, 2 * e : 2 * e + 2], flat_a[2 * e : 2 * e + 2], 3 / 2)

        assert np.array_equal(delta, sample.deltas[f"model.layers.1.mlp.experts.{e}.down_proj.weight"])


def test_provenance_says_the_new_layout(tmp_path: Path) -> None:
    sample = build(tmp_path, fused("swapped", "rank_major"))

    convert_adapter(sample.adapter, tmp_path / "out", to_io_layout="standard", to_b_packing="grouped_by_expert")

    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["peft_version"], config["lora_B_layout"]) == ("0.19.1", "grouped_by_expert")
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["original"]["state"]["io_layout"] == "swapped"
    assert json.loads(record["original"]["adapter_config"])["peft_version"] == "0.18.1"


def test_a_square_adapter_is_converted_by_its_provenance_only(tmp_path: Path) -> None:
    """A single square parameter: without a version nothing says what it is, and converting it would be guessing."""
    spec = fused("swapped", "rank_major", parameters=("down_proj",), hidden=6, width=6)
    sample = build(tmp_path, spec)
    convert_adapter(sample.adapter, tmp_path / "known", to_io_layout="standard")
    check_merge(sample, tmp_path / "known", tmp_path / "merged")
    del sample.config["peft_version"]
    sample.save_adapter()

    with pytest.raises(AmbiguousLayoutError):
        convert_adapter(sample.adapter, tmp_path / "out", to_io_layout="standard")
    assert not (tmp_path / "out").exists()
    convert_adapter(sample.adapter, tmp_path / "told", to_io_layout="standard", io_layout="swapped")
    check_merge(sample, tmp_path / "told", tmp_path / "merged2")


def test_what_a_fused_pair_cannot_hold_is_refused(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(memory="linear"))
    stem = "base_model.model.model.layers.0.mlp.experts.1.down_proj"
    kept = dict(sample.adapter_tensors)

    del sample.adapter_tensors[f"{stem}.lora_A.weight"], sample.adapter_tensors[f"{stem}.lora_B.weight"]
    sample.save_adapter()
    with pytest.raises(UnsupportedAdapterError, match=r"experts \[1\] have no LoRA on down_proj"):
        convert_adapter(sample.adapter, tmp_path / "out", to_experts="fused")

    sample.adapter_tensors = kept
    sample.config["alpha_pattern"] = {"experts.1.down_proj": 9}
    sample.save_adapter()
    with pytest.raises(UnsupportedAdapterError, match="differ in rank, alpha"):
        convert_adapter(sample.adapter, tmp_path / "out", to_experts="fused")
    assert not (tmp_path / "out").exists()


def test_rslora_with_two_lora_a_is_refused(tmp_path: Path) -> None:
    """Twice the rank and rslora's square root: no alpha gives the same scale exactly."""
    sample = build(tmp_path, Spec(memory="linear", use_rslora=True))

    with pytest.raises(UnsupportedAdapterError, match="use_rslora"):
        convert_adapter(sample.adapter, tmp_path / "out", to_experts="fused")


def test_options_that_cannot_be(tmp_path: Path) -> None:
    plain = build(tmp_path / "plain", Spec(parameters=(), memory="linear"))
    single = build(tmp_path / "single", Spec(memory="linear"))

    with pytest.raises(UsageError, match="no LoRA on routed experts"):
        convert_adapter(plain.adapter, tmp_path / "out", to_experts="fused")
    with pytest.raises(UsageError, match="about fused experts"):
        convert_adapter(single.adapter, tmp_path / "out", to_io_layout="standard")
    with pytest.raises(UsageError):
        convert_adapter(single.adapter, single.adapter, to_experts="fused")


def test_other_files_and_dtypes_are_kept(tmp_path: Path) -> None:
    sample = build(tmp_path, fused("swapped", "rank_major"))
    sample.adapter_tensors = {key: tensor.bfloat16() for key, tensor in sample.adapter_tensors.items()}
    sample.save_adapter()
    (sample.adapter / "README.md").write_text("kept")

    convert_adapter(sample.adapter, tmp_path / "out", to_io_layout="standard")

    assert (tmp_path / "out" / "README.md").read_text() == "kept"
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "adapter_model.safetensors").values()} == {
        torch.bfloat16
    }


def test_a_file_sorted_as_the_library_sorts_it(tmp_path: Path) -> None:
    """The new file is byte for byte what the safetensors library writes for the same tensors."""
    sample = build(tmp_path, fused("standard", "rank_major"))
    convert_adapter(sample.adapter, tmp_path / "out", to_experts="per-expert")
    path = tmp_path / "out" / "adapter_model.safetensors"

    save_file(load_file(path), tmp_path / "again.safetensors")

    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_inspection(tmp_path: Path) -> None:
    spec = fused("swapped", "grouped_by_expert", zero_experts=(2,), gate_up_rank=4, gate_up_alpha=8)
    sample = build(tmp_path, spec)
    other = build(tmp_path / "other", Spec(hidden=8))

    facts = inspect_adapter(sample.adapter)
    expert = facts.by_kind["expert"]
    assert (expert.modules, expert.ranks, expert.scales, expert.layers) == (4, (2, 4), (1.5, 2.0), 2)
    assert (facts.experts, facts.num_experts, facts.peft_version) == ("fused", 4, "0.18.1")
    assert facts.io_layout is not None
    assert facts.b_packing is not None
    assert (facts.io_layout.value, facts.io_layout.by) == ("swapped", "shape")
    assert (facts.b_packing.value, facts.b_packing.by) == ("grouped_by_expert", "marker")
    assert set(facts.zero) == {
        f"model.layers.{layer}.mlp.experts.{name} (expert 2)" for layer in (0, 1) for name in spec.parameters
    }
    assert facts.fits is None
    assert inspect_adapter(sample.adapter, base=sample.base).fits is True
    misfit = inspect_adapter(sample.adapter, base=other.base)
    assert misfit.fits is False
    assert misfit.misfit
    assert json.dumps(facts.to_json())


def test_a_base_that_is_no_checkpoint_is_an_error_and_not_one_that_does_not_fit(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())
    (tmp_path / "empty").mkdir()

    with pytest.raises(InputNotFoundError, match=r"the base directory .* does not exist"):
        inspect_adapter(sample.adapter, base=tmp_path / "absent")
    with pytest.raises(InputRefusedError):
        inspect_adapter(sample.adapter, base=tmp_path / "empty")


def test_inspection_of_an_adapter_whose_layout_nothing_tells(tmp_path: Path) -> None:
    spec = Spec(parameters=("down_proj",), hidden=6, width=6, peft_version=None)
    sample = build(tmp_path, spec)

    facts = inspect_adapter(sample.adapter)

    assert facts.io_layout is None
    assert "io layout" in (facts.undecided or "")


def test_inspection_says_how_to_settle_a_contradiction(tmp_path: Path) -> None:
    """Shapes are swapped, and the release that the adapter names writes standard ones."""
    sample = build(tmp_path, Spec(io_layout="swapped", peft_version="0.19.1"))

    facts = inspect_adapter(sample.adapter, base=sample.base)
    settled = inspect_adapter(sample.adapter, base=sample.base, io_layout="swapped")

    for told in (facts.undecided or "", facts.misfit or ""):
        assert told.startswith("it contradicts itself: the shapes of")
        assert told.endswith("confirm with --io-layout swapped.")
    assert (settled.undecided, settled.fits) == (None, True)


def test_an_existing_directory_is_not_converted_to_and_nothing_advised_that_is_not_there(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())
    (tmp_path / "out").mkdir()

    with pytest.raises(OutputExistsError) as caught:
        convert_adapter(sample.adapter, tmp_path / "out", to_io_layout="swapped")

    assert "--overwrite" not in str(caught.value.remedy)


def test_shapes_that_fit_no_module(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())
    key = "base_model.model.model.layers.0.mlp.experts.lora_A.weight"
    sample.adapter_tensors[key] = torch.ones(8, 11)
    sample.save_adapter()

    with pytest.raises(MalformedAdapterError, match="cannot be gate_up_proj and down_proj"):
        convert_adapter(sample.adapter, tmp_path / "out", to_io_layout="swapped")
    with pytest.raises(InputRefusedError):
        convert_adapter(sample.adapter, tmp_path / "out", to_experts="per-expert")
