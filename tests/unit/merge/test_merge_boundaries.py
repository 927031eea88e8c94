"""Boundaries that mutants of the engine crossed unnoticed by all cells: exactly full, at the very end, both at once."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from format_samples import HIDDEN, VOCABULARY, Numbers, small_base, write_adapter, write_base
from merge_samples import Spec, build

from harness.merge import errors, plan_merge
from harness.merge.adapter.bounded_regex import BoundedPattern, Budget
from harness.merge.files import json_file
from harness.merge.plan.estimate import estimate
from harness.merge.publish.publish import check_space

EMBED = "model.embed_tokens"


@pytest.fixture
def numbers() -> Numbers:
    return Numbers()


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("a$", "a\nb"),  # $ before a line end that is not the last
        (r"a\n^b", "a\nb"),  # ^ after one
        ("(?m)a$", "a\nb"),
        (r"(?m)a\n^b", "a\nb"),
        ("a$", "a\n"),
        ("[A]b", "ab"),  # case in a set, and in a negated one
        ("[^A]b", "ab"),
        ("(?i)[A]b", "ab"),
        ("(?i)[^A]b", "ab"),
        ("(?=a*b)aab", "aab"),  # any number, asked from its end back
        ("(?=a*b)aac", "aac"),
        ("(?=ba*c)ba", "baaac"),
        ("a(?=a*b)ab", "aab"),  # from between
        ("(?=a*b)a", "aacb"),  # not past another letter
        ("(?=.*z)abc", "abcabz"),  # an end beyond all small places
        ("(?!.*z)abc", "abcabz"),
        ("(?=abcdef)a", "abcdef"),
        ("a+b", "b"),  # once at least
        ("a+b", "aab"),
        ("a*b", "b"),
    ],
)
def test_patterns_say_what_pythons_say_at_line_ends_in_sets_and_ahead(pattern: str, name: str) -> None:
    bounded, expected = BoundedPattern(pattern), re.compile(pattern)

    assert bounded.match(name) == (expected.match(name) is not None)
    assert bounded.fullmatch(name) == (expected.fullmatch(name) is not None)


def test_a_set_is_paid_for_item_by_item() -> None:
    """153.4 steps: 100 and 50 to compile, 0.5 to ask, 0.2 for the name and 0.2 for its letters, a node, three items."""
    assert BoundedPattern("[abc]", budget=Budget(154)).match("a")
    with pytest.raises(errors.UnsafePatternError, match="take too long"):
        BoundedPattern("[abc]", budget=Budget(153)).match("a")


def test_an_embeddings_pair_without_its_magnitude_is_no_dora(tmp_path: Path, numbers: Numbers) -> None:
    """Only of lora_bias embeddings have none."""
    lora = {f"{EMBED}.lora_embedding_A": numbers(2, VOCABULARY), f"{EMBED}.lora_embedding_B": numbers(HIDDEN, 2)}
    write_adapter(tmp_path / "a", lora, use_dora=True, target_modules=["embed_tokens"])

    with pytest.raises(errors.MalformedAdapterError, match="use_dora = true, but the adapter lacks"):
        plan_merge(write_base(tmp_path / "b", small_base(numbers)), tmp_path / "a")


def test_a_whole_tensor_and_rows_of_it_cannot_both_be_trained(tmp_path: Path, numbers: Numbers) -> None:
    tokens = {
        f"{EMBED}.weight": numbers(VOCABULARY, HIDDEN),
        f"{EMBED}.token_adapter.trainable_tokens_delta": numbers(1, HIDDEN),
    }
    write_adapter(tmp_path / "a", tokens, trainable_token_indices=[3], modules_to_save=["embed_tokens"])

    with pytest.raises(errors.MalformedAdapterError, match="both replace or change the same part"):
        plan_merge(write_base(tmp_path / "b", small_base(numbers)), tmp_path / "a")


def test_a_file_of_exactly_the_most_bytes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full.json").write_text('{"a": 12}')
    monkeypatch.setattr(json_file, "MAX_JSON_BYTES", 9)

    assert json_file.read_object(tmp_path / "full.json") == {"a": 12}
    (tmp_path / "full.json").write_text('{"a": 123}')
    with pytest.raises(errors.CorruptFileError, match="has 10 bytes; more than 9"):
        json_file.read_object(tmp_path / "full.json")


def test_free_bytes_are_blocks_times_their_size_and_what_is_regained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def statvfs(_path: Any) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=3, f_frsize=1000)

    monkeypatch.setattr(os, "statvfs", statvfs)

    assert check_space(tmp_path, 3000) == 3000
    assert check_space(tmp_path, 3007, regained=7) == 3007
    with pytest.raises(errors.IncompleteMergeError, match="needs at least 3001 bytes, and 3000 are free"):
        check_space(tmp_path, 3001)


def planned(layer: int, **changes: object) -> Any:
    """Two shards of half a gigabyte, and one layer whose factors take so many bytes."""
    contribution = SimpleNamespace(info=SimpleNamespace(nbytes=layer))
    row = SimpleNamespace(layer=0, regions=[SimpleNamespace(contributions=[0])])
    base = SimpleNamespace(shards=[SimpleNamespace(size=500_000_000)] * 2)
    return SimpleNamespace(
        **{"contributions": [contribution], "rows": [row], "quantization": None, "base": base} | changes
    )


@pytest.mark.parametrize(
    ("changes", "accumulate", "wide"), [({}, "float32", 1), ({}, "float64", 2), ({"quantization": "fp8"}, "float32", 2)]
)
def test_memory_is_fixed_and_a_share_of_each_thread_and_the_factors_of_a_layer_more_than_lanes(
    changes: dict[str, object], accumulate: str, wide: int
) -> None:
    found = estimate(planned(1000, **changes), 3, accumulate)

    assert (found.threads, found.lanes, found.seconds) == (3, 2, 1.0)
    assert found.peak_bytes == 96 * 2**20 + 3 * wide * 40 * 2**20 + 3 * 1000


def test_one_shard_is_written_whatever_its_factors_take() -> None:
    assert estimate(planned(384 * 2**20 + 1), 3).lanes == 1
    assert estimate(planned(192 * 2**20), 3).lanes == 2


def test_experts_that_are_fused_on_disk_are_targets_too(tmp_path: Path) -> None:
    """Of the last layer as of the others, one by one."""
    sample = build(tmp_path, Spec(disk="fused"))
    for half in ("lora_A", "lora_B"):
        del sample.adapter_tensors[f"base_model.model.model.layers.1.mlp.experts.{half}.weight"]
    sample.save_adapter()

    with pytest.raises(errors.UncoveredTargetsError, match=r"targets 4 tensors.*layers\.1\.mlp\.experts\.3\.down_proj"):
        plan_merge(sample.base, sample.adapter)
