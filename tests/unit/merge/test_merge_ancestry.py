"""A base that is itself a merge is noted, and named when it holds the very adapter already."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from merge_samples import Spec, build
from safetensors.torch import load_file, save_file

from harness.merge import audit, merge, plan_merge

AGAIN = "the base already holds adapter, by its merge_manifest.json: the deltas count a second time here"


def test_a_base_that_holds_the_adapter_already_is_noted_in_plan_merge_and_audit(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())
    merge(plan_merge(sample.base, sample.adapter), tmp_path / "once")
    copied = tmp_path / "elsewhere" / "adapter"
    shutil.copytree(sample.adapter, copied)

    plan = plan_merge(tmp_path / "once", copied)
    report = merge(plan, tmp_path / "twice")
    audited = audit(tmp_path / "once", copied, tmp_path / "twice")

    assert AGAIN in plan.notes
    assert AGAIN in report.notes
    assert AGAIN in audited.notes
    assert AGAIN not in plan_merge(sample.base, sample.adapter).notes


def test_a_base_that_is_a_merge_of_another_adapter_is_noted(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())
    merge(plan_merge(sample.base, sample.adapter), tmp_path / "once")
    shutil.copytree(sample.adapter, tmp_path / "other")
    config = tmp_path / "other" / "adapter_config.json"
    config.write_text(config.read_text() + "\n")

    plan = plan_merge(tmp_path / "once", tmp_path / "other")

    assert "the base is itself a merge, by its merge_manifest.json, of another adapter" in plan.notes


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"adapter": 3}', '{"adapters": {"a": 1}}', "{" * 200, '{"adapter": {"sha256": []}}']
)
def test_a_manifest_that_says_nothing_changes_nothing(text: str, tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())
    (sample.base / "merge_manifest.json").write_text(text)

    plan = plan_merge(sample.base, sample.adapter)

    assert not any("already holds" in note for note in plan.notes)


def test_an_audit_of_the_base_against_itself_says_so(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())

    report = audit(sample.base, sample.adapter, sample.base)

    assert "base and merged are one directory, so whatever the adapter changes reads as dropped" in report.notes


def test_an_audit_against_another_base_than_the_one_merged_into_says_so(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec())
    shutil.copytree(sample.base, tmp_path / "other")
    noise = torch.Generator().manual_seed(0)
    for path in (tmp_path / "other").glob("*.safetensors"):
        values = load_file(path)
        changed = {
            name: (value.float() + value.float().std() * torch.randn(value.shape, generator=noise)).to(value.dtype)
            for name, value in values.items()
        }
        save_file(changed, path, metadata={"format": "pt"})
    merge(plan_merge(tmp_path / "other", sample.adapter), tmp_path / "merged")

    right = audit(tmp_path / "other", sample.adapter, tmp_path / "merged")
    wrong = audit(sample.base, sample.adapter, tmp_path / "merged")

    assert "another base" not in right.sentence
    assert "it may be merged into another base" in wrong.sentence
