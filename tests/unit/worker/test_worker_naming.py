"""Tensors under other names: each is still judged by its value, and a name that follows no rule is a fault."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.worker.checkpoints.family import Checkpoint, Routing
from harness.worker.checkpoints.tensors import TensorSpec
from harness.worker.stages import tensor_gate
from harness.worker.stages.naming import Found, find
from harness.worker.stages.tensor_gate import TensorReport, inspect

PREFIXES = ("model.language_model.", "model.")
LONG, SHORT = (f"{prefix}layers.0.mlp.experts" for prefix in PREFIXES)
FUSED = TensorSpec(key=f"{LONG}.gate_up_proj", shape=(2, 4, 3), kind="expert", module=SHORT, role="gate_up_proj")
DOWN = TensorSpec(key=f"{LONG}.down_proj", shape=(2, 3, 2), kind="expert", module=SHORT, role="down_proj")
NORM = TensorSpec(key="model.language_model.norm.weight", shape=(3,))
EXTRA = TensorSpec(key="mtp.fc.weight", shape=(2, 2), extra=True)
CHECKPOINT = Checkpoint(
    config={}, tensors=(FUSED, DOWN, NORM, EXTRA), routing=Routing(top_k=1, scores="softmax"),
    layers_with_experts=(0,), num_experts=2, prefixes=PREFIXES,
)  # fmt: skip


def apart(prefix: str, gate_up: torch.Tensor, down: torch.Tensor) -> dict[str, torch.Tensor]:
    """Fused experts as save_pretrained writes them: gate rows first (transformers 5, ``Qwen3_5MoeExperts``)."""
    parts = {}
    for e in range(2):
        parts[f"{prefix}.{e}.gate_proj.weight"], parts[f"{prefix}.{e}.up_proj.weight"] = gate_up[e].chunk(2)
        parts[f"{prefix}.{e}.down_proj.weight"] = down[e]
    return parts


def look(spec: TensorSpec, tensors: dict[str, torch.Tensor], prefixes: tuple[str, ...]) -> Found:
    """Look for one tensor of a checkpoint that has no other."""
    return find([spec], tensors, prefixes)[spec.key]


def test_experts_written_one_by_one_are_put_together_again() -> None:
    gate_up, down = torch.randn(2, 4, 3), torch.randn(2, 3, 2)
    found = look(FUSED, apart(LONG, gate_up, down), PREFIXES)

    assert torch.equal(found.tensor, gate_up)
    assert found.rule == "fused experts one by one"
    assert len(found.keys) == 4
    assert torch.equal(look(DOWN, apart(LONG, gate_up, down), PREFIXES).tensor, down)


def test_both_rules_together_say_both() -> None:
    found = look(FUSED, apart(SHORT, torch.randn(2, 4, 3), torch.randn(2, 3, 2)), PREFIXES)

    assert found.rule == "model.language_model.* as model.* and fused experts one by one"


def test_the_own_key_wins_and_a_second_copy_stays_unexpected() -> None:
    own, other = torch.zeros(3), torch.ones(3)
    found = look(NORM, {NORM.key: own, "model.norm.weight": other}, PREFIXES)

    assert (found.tensor is own, found.keys, found.rule) == (True, (NORM.key,), None)


@pytest.mark.parametrize("prefixes", [(), ("model.",)])
def test_a_family_with_one_prefix_has_no_other_names(prefixes: tuple[str, ...]) -> None:
    spec = TensorSpec(key="model.norm.weight", shape=(3,))

    assert look(spec, {"model.language_model.norm.weight": torch.ones(3)}, prefixes).tensor is None


def test_experts_of_which_one_lacks_or_does_not_fit_stand_for_nothing() -> None:
    parts = apart(LONG, torch.randn(2, 4, 3), torch.randn(2, 3, 2))
    lacking = {key: tensor for key, tensor in parts.items() if key != f"{LONG}.1.up_proj.weight"}
    ragged = parts | {f"{LONG}.1.up_proj.weight": torch.randn(1, 3)}
    of_two_dtypes = parts | {f"{LONG}.1.up_proj.weight": torch.randn(2, 3).bfloat16()}

    assert [look(FUSED, tensors, PREFIXES).tensor for tensors in (lacking, ragged, of_two_dtypes)] == [None] * 3


def _boundary_moved(key: str, rows: int) -> dict[str, tuple[int, int]]:
    """Shapes of one expert's gate and up whose sum of rows is right."""
    return {f"{key}.gate_proj.weight": (rows, 3), f"{key}.up_proj.weight": (4 - rows, 3)}


@pytest.mark.parametrize(
    "shapes",
    [
        {**_boundary_moved(f"{LONG}.0", 3), **_boundary_moved(f"{LONG}.1", 3)},
        _boundary_moved(f"{LONG}.1", 1),
        {f"{LONG}.{e}.{role}.weight": (2, 2) for e in range(2) for role in ("gate_proj", "up_proj")},
        {f"{LONG}.{e}.{role}.weight": (2, 3, 1) for e in range(2) for role in ("gate_proj", "up_proj")},
    ],
    ids=["every boundary moved", "one boundary moved", "another width", "another rank"],
)
def test_gate_and_up_have_each_their_own_shape(shapes: dict[str, tuple[int, ...]]) -> None:
    parts = apart(LONG, torch.randn(2, 4, 3), torch.randn(2, 3, 2))
    parts |= {key: torch.randn(shape) for key, shape in shapes.items()}

    assert look(FUSED, parts, PREFIXES).tensor is None
    assert look(DOWN, parts, PREFIXES).tensor is not None


def test_down_proj_has_its_own_shape() -> None:
    parts = apart(LONG, torch.randn(2, 4, 3), torch.randn(2, 3, 2))
    parts |= {f"{LONG}.{e}.down_proj.weight": torch.randn(2, 3) for e in range(2)}

    assert look(DOWN, parts, PREFIXES).tensor is None


def named(spec: TensorSpec, *, prefix: str, fused: bool = True) -> dict[str, torch.Tensor]:
    """One tensor of ones as a directory holds it under a prefix."""
    key = f"{prefix}{spec.key.removeprefix('model.language_model.')}"
    if fused or spec.role is None:
        return {key: torch.ones(spec.shape)}
    path = key.removesuffix(f".{spec.role}")
    ones = apart(path, torch.ones(FUSED.shape), torch.ones(DOWN.shape))
    return {name: part for name, part in ones.items() if ("down_proj" in name) == (spec is DOWN)}


def test_one_prefix_holds_for_all_tensors() -> None:
    """Two tensors decide, and the third under the other prefix stands for nothing."""
    specs = (FUSED, DOWN, NORM)
    for odd in specs:
        for most, other in (PREFIXES, PREFIXES[::-1]):
            tensors: dict[str, torch.Tensor] = {}
            for spec in specs:
                tensors |= named(spec, prefix=other if spec is odd else most)
            found = find(specs, tensors, PREFIXES)

            assert [key for key, place in found.items() if place.tensor is None] == [odd.key]


def test_one_form_of_experts_holds_for_all_tensors() -> None:
    others = [
        TensorSpec(
            key=f"{PREFIXES[0]}layers.1.mlp.experts.{spec.role}", shape=spec.shape, kind="expert", role=spec.role
        )
        for spec in (FUSED, DOWN)
    ]
    specs = (FUSED, DOWN, others[0])
    tensors = {
        **named(FUSED, prefix=PREFIXES[0]), **named(DOWN, prefix=PREFIXES[0]),
        **named(others[0], prefix=PREFIXES[0], fused=False),
    }  # fmt: skip

    assert [key for key, place in find(specs, tensors, PREFIXES).items() if place.tensor is None] == [others[0].key]


def test_what_the_model_does_not_load_has_no_other_name() -> None:
    extra = TensorSpec(key="model.language_model.layers.9.norm.weight", shape=(3,), extra=True)
    tensors = {**named(NORM, prefix="model."), **named(extra, prefix="model.")}
    found = find((NORM, extra), tensors, PREFIXES)

    assert (found[NORM.key].tensor is None, found[extra.key].tensor is None) == (False, True)


# In the gate


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A base in the published form, and deltas on the experts."""
    for name in ("base", "merged", "adapter"):
        (tmp_path / name).mkdir()
    generator = torch.Generator().manual_seed(1)
    save_file(
        {s.key: torch.randn(s.shape, generator=generator) for s in CHECKPOINT.tensors},
        tmp_path / "base" / "model.safetensors",
    )
    deltas = {f"{SHORT}:{s.role}": torch.randn(s.shape, generator=generator).double() for s in (FUSED, DOWN)}
    save_file(deltas, tmp_path / "deltas.safetensors")
    (tmp_path / "pairs.json").write_text(json.dumps({f"p.{name}": name for name in deltas}))
    save_file(
        {f"p.{name}.lora_A.weight": torch.ones(1) for name in deltas},
        tmp_path / "adapter" / "adapter_model.safetensors",
    )
    return tmp_path


def judged(work: Path, *, keeps_bytes: bool = False, swap: bool = False, extra: bool = True) -> TensorReport:
    """Judge a right merge as save_pretrained writes it. ``swap`` puts the experts' up rows in one another's place."""
    base, deltas = load_file(work / "base" / "model.safetensors"), load_file(work / "deltas.safetensors")
    gate_up, down = ((base[s.key].double() + deltas[f"{SHORT}:{s.role}"]).float() for s in (FUSED, DOWN))
    merged = apart(SHORT, gate_up, down)
    if swap:
        first, second = (f"{SHORT}.{e}.up_proj.weight" for e in range(2))
        merged[first], merged[second] = merged[second], merged[first]
    merged["model.norm.weight"] = base[NORM.key]
    if extra:
        merged[EXTRA.key] = base[EXTRA.key]
    save_file({key: tensor.contiguous() for key, tensor in merged.items()}, work / "merged" / "model.safetensors")
    return inspect(
        CHECKPOINT, work=work, base=work / "base", adapter=work / "adapter", merged=work / "merged", ulp_max=1.0,
        keeps_bytes=keeps_bytes,
    )  # fmt: skip


def test_a_right_merge_under_other_names_is_right_and_says_what_was_renamed(work: Path) -> None:
    report = judged(work)

    assert report.counts == Counter(attempted=2, applied=2)
    assert report.exact_fraction == 1.0
    assert (report.keys_missing, report.keys_unexpected, report.untouched_changed) == ([], [], [])
    assert report.renamed == {
        "model.language_model.* as model.* and fused experts one by one": 2,
        "model.language_model.* as model.*": 1,
    }


def test_a_wrong_merge_under_other_names_is_wrong(work: Path) -> None:
    assert judged(work, swap=True).counts == Counter(attempted=2, applied=1, wrong=1)


def test_an_engine_that_promises_bytes_is_held_to_its_names(work: Path) -> None:
    report = judged(work, keeps_bytes=True)

    assert report.counts == Counter(attempted=2, wrong=2)
    assert set(report.keys_missing) == {FUSED.key, DOWN.key, NORM.key}
    assert len(report.keys_unexpected) == 2 * 3 + 1
    assert not report.renamed


def test_a_tensor_that_the_model_does_not_load_is_missed_all_the_same(work: Path) -> None:
    report = judged(work, extra=False)

    assert report.keys_missing == report.extras_missing == [EXTRA.key]


def test_files_in_other_words_are_excused_only_where_the_engine_may_choose_them(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What says the same is decided by the release in its cell; here it is given."""
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        (work / "base" / name).write_text("{}")
        (work / "merged" / name).write_text('{"other": 1}')
    monkeypatch.setattr(
        tensor_gate, "same_in_other_words", lambda _base, _merged, _configure: {"config.json", "tokenizer.json"}
    )
    free, bound = judged(work), judged(work, keeps_bytes=True)

    assert free.files_changed == ["generation_config.json"]
    assert free.files_rewritten == ["config.json", "tokenizer.json"]
    assert bound.files_changed == ["config.json", "generation_config.json", "tokenizer.json"]
    assert bound.files_rewritten == []
