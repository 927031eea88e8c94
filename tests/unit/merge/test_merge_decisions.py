"""The pure parts: names, patterns, layouts, against values worked out by hand or from PEFT's documented rules."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from merge_samples import Spec, assert_merged, build

from harness.merge import errors, merge, plan_merge
from harness.merge.adapter.layout import layout_of_peft, parameter_readings
from harness.merge.adapter.patterns import ModuleRule, PatternTable, targets_module
from harness.merge.base.names import common, kind_of, layer_of


@pytest.mark.parametrize(
    ("version", "layout"),
    [
        ("0.17.1", "swapped"), ("0.18.0", "swapped"), ("0.19.0", "swapped"), ("0.19.0.dev0", "swapped"),
        ("0.19.1", "standard"), ("0.19.1@abc", "standard"), ("0.20.0", "standard"), ("0.20.0.dev0", "standard"),
        ("1.0", "standard"), ("0.19.1.dev0", None), ("0.19.1rc1", None), (None, None), ("", None), ("x", None),
    ],
)  # fmt: skip
def test_io_layout_by_release(version: str | None, layout: str | None) -> None:
    assert layout_of_peft(version) == layout


@given(st.integers(1, 12), st.integers(1, 12))
def test_shapes_always_show_the_parameter(hidden: int, width: int) -> None:
    """Whatever H and I are, no shape of gate_up_proj is also one of down_proj, in either layout."""
    parameters = {"gate_up_proj": (2 * width, hidden), "down_proj": (hidden, width)}
    for name, (out, wide) in parameters.items():
        for features, layout in (((wide, out), "standard"), ((out, wide), "swapped")):
            readings = parameter_readings(features, parameters)

            assert {parameter for parameter, _ in readings} == {name}
            assert (name, layout) in readings
            assert len(readings) == (2 if out == wide else 1)


@pytest.mark.parametrize(
    ("key", "kind", "layer"),
    [
        ("model.layers.3.self_attn.kv_a_proj_with_mqa.weight", "attention", 3),
        ("model.language_model.layers.12.linear_attn.in_proj_qkv.weight", "attention", 12),
        ("model.layers.3.mlp.experts.17.gate_proj.weight", "expert", 3),
        ("model.language_model.layers.0.mlp.experts.gate_up_proj", "expert", 0),
        ("model.layers.3.mlp.shared_experts.down_proj.weight", "shared_expert", 3),
        ("model.layers.3.mlp.shared_expert.down_proj.weight", "shared_expert", 3),
        ("model.layers.3.mlp.shared_expert_gate.weight", "shared_expert", 3),
        ("model.layers.3.mlp.gate.weight", "router", 3),
        ("model.layers.0.mlp.gate_proj.weight", "dense", 0),
        ("lm_head.weight", "other", None),
        ("mtp.layers.0.mlp.experts.0.up_proj.weight", "expert", None),
        ("model.visual.blocks.0.attn.proj.weight", "other", None),
    ],
)
def test_kinds_and_layers(key: str, kind: str, layer: int | None) -> None:
    assert kind_of(key) == kind
    assert layer_of(key) == layer


@pytest.mark.parametrize(
    ("path", "spelling"),
    [
        ("model.layers.0.mlp.gate", "layers.0.mlp.gate"),
        ("model.language_model.layers.0.mlp.gate", "layers.0.mlp.gate"),
        ("model.layers.3.block_sparse_moe.gate.weight", "layers.3.mlp.gate.weight"),
        ("model.layers.3.block_sparse_moe.experts.11.w1.weight", "layers.3.mlp.experts.11.gate_proj.weight"),
        ("model.layers.3.block_sparse_moe.experts.11.w3.weight", "layers.3.mlp.experts.11.up_proj.weight"),
        ("model.layers.3.block_sparse_moe.experts.11.w2", "layers.3.mlp.experts.11.down_proj"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head", "lm_head"),
        ("model.embed_tokens.weight", "embed_tokens.weight"),
        ("mtp.layers.0.mlp", "mtp.layers.0.mlp"),
        ("model.visual.blocks.0.attn", "model.visual.blocks.0.attn"),
        ("model.visual.layers.0.x", "model.visual.layers.0.x"),
    ],
)
def test_spellings_are_brought_to_one_inside_the_decoder_only(path: str, spelling: str) -> None:
    assert common(path) == spelling


@pytest.mark.parametrize(
    ("patterns", "name", "value"),
    [
        ({}, "model.layers.0.q_proj", 8),
        ({"q_proj": 1}, "model.layers.0.q_proj", 1),
        ({"q_proj": 1}, "model.layers.0.eq_proj", 8),  # a whole dotted part, not any ending
        ({"layers.0.q_proj": 1, "q_proj": 2}, "model.layers.0.q_proj", 1),
        ({"q_proj": 2, "layers.0.q_proj": 1}, "model.layers.0.q_proj", 2),  # the first that matches
        ({r".*\.gate_up_proj": 4}, "model.layers.0.mlp.experts.gate_up_proj", 4),
        ({r"layers\.(0|2)\..*": 4}, "model.layers.2.mlp.up_proj", 4),
        ({r"layers\.(0|2)\..*": 4}, "model.layers.1.mlp.up_proj", 8),
        ({"^model.layers.1.mlp.gate": 4}, "model.layers.1.mlp.gate", 4),
        ({"a.b": 4}, "x.aXb", 4),  # a dot in a pattern is any character, as in PEFT
    ],
)
def test_patterns_match_as_in_peft(patterns: dict[str, float], name: str, value: float) -> None:
    assert PatternTable(patterns).value(name, 8) == value


@given(
    st.dictionaries(
        st.sampled_from(["q", "k", "a.q", r"a\.q", "^a.q", "b.a.q", r"b\.a.q", "x", ".", "..q", "(q|x)"]),
        st.integers(1, 9),
    ),
    st.sampled_from(["q", "a.q", "aXq", "c.b.a.q", "c.bXaXq", "c.b.aXq", "q\n", "a\nq", "", "."]),
)
def test_plain_patterns_agree_with_the_rule_spelled_out(patterns: dict[str, float], name: str) -> None:
    expected = next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", name)), 0.5)

    assert PatternTable(patterns).value(name, 0.5) == expected


def targeted(
    name: str,
    *,
    target_modules: str | tuple[str, ...],
    exclude_modules: tuple[str, ...] = (),
    layers_to_transform: tuple[int, ...] | None = None,
) -> bool:
    return targets_module(
        name,
        layer_of(name),
        target_modules=ModuleRule(target_modules),
        exclude_modules=ModuleRule(exclude_modules),
        layers_to_transform=layers_to_transform,
    )


def test_targets_match_as_in_peft() -> None:
    name = "model.layers.1.self_attn.q_proj"

    assert targeted(name, target_modules=("q_proj",))
    assert targeted(name, target_modules=(name,))
    assert not targeted(name, target_modules=("proj",))
    assert targeted(name, target_modules=r".*\.q_proj")
    assert not targeted(name, target_modules="q_proj")  # a string is a regular expression for the whole name
    assert not targeted(name, target_modules=("q_proj",), exclude_modules=("self_attn.q_proj",))
    assert targeted(name, target_modules=("q_proj",), layers_to_transform=(1,))
    assert not targeted(name, target_modules=("q_proj",), layers_to_transform=(0, 2))


def test_keys_exactly_as_peft_0_19_writes_them_for_qwen3_moe(tmp_path: Path) -> None:
    """Written out by hand from an adapter that PEFT 0.19.1 saved on transformers 5.5.0."""
    sample = build(tmp_path, Spec(layers=1, shared=False))

    assert set(sample.adapter_tensors) == {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
        "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight",
        "base_model.model.model.layers.0.mlp.experts.base_layer.lora_B.weight",
        "base_model.model.model.layers.0.mlp.experts.lora_A.weight",
        "base_model.model.model.layers.0.mlp.experts.lora_B.weight",
    }
    assert sample.adapter_tensors["base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight"].shape == (
        4 * 2,
        6,
    )
    assert sample.adapter_tensors["base_model.model.model.layers.0.mlp.experts.base_layer.lora_B.weight"].shape == (
        2 * 5,
        4 * 2,
    )
    merge(plan_merge(sample.base, sample.adapter), tmp_path / "out")
    assert_merged(sample, tmp_path / "out")


def test_an_adapter_that_peft_left_without_experts_merges_with_a_note(tmp_path: Path) -> None:
    """target_modules names expert Linears, which PEFT 0.18 passes over on fused experts.

    The adapter is complete without them.
    """
    sample = build(tmp_path, Spec(parameters=(), shared=False))
    sample.config["target_modules"] = ["q_proj", "experts.0.gate_proj", "experts.1.gate_proj"]
    sample.config["target_parameters"] = None
    sample.config["something_new"] = {"on": True}
    sample.save_adapter()

    report = merge(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    assert report.attempted == 2
    assert any("experts" in note for note in report.notes)
    assert any("something_new" in note for note in report.notes)
    assert_merged(sample, tmp_path / "out")


def test_layers_to_transform_explains_what_is_missing(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(parameters=(), shared=False))
    sample.config["target_parameters"] = None
    sample.config["layers_to_transform"] = [1]
    for key in [key for key in sample.adapter_tensors if "layers.0." in key]:
        del sample.adapter_tensors[key]
    del sample.deltas["model.layers.0.self_attn.q_proj.weight"]
    sample.save_adapter()

    merge(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    assert_merged(sample, tmp_path / "out")


@pytest.mark.parametrize("enabled", [True, False])
def test_planning_leaves_the_garbage_collector_as_it_was(tmp_path: Path, enabled: bool) -> None:
    sample = build(tmp_path)
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        plan_merge(sample.base, sample.adapter)
        after_a_plan = gc.isenabled()
        with pytest.raises(errors.UsageError):
            plan_merge(sample.base, sample.adapter, weights=[1.0, 2.0])
        after_an_error = gc.isenabled()
    finally:
        (gc.enable if was else gc.disable)()

    assert (after_a_plan, after_an_error) == (enabled, enabled)


def test_the_plan_is_the_same_every_time_and_counts_what_it_will_do(tmp_path: Path) -> None:
    sample = build(tmp_path)

    first, second = (plan_merge(sample.base, sample.adapter).to_json() for _ in range(2))

    assert first == second
    assert first["attempted"] == len(sample.deltas)
    assert first["by_kind"] == {"attention": 2, "expert": 24, "shared_expert": 6}
