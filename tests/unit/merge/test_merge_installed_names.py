"""Names that a base has on disk and no rule of ours knows: an installed transformers is asked, here a stand-in."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from format_samples import Numbers, close, exact, merged, pair, write_adapter, write_base

from harness.merge import errors, plan_merge
from harness.merge.base.installed import installed_names


@dataclass
class WeightRenaming:
    """A rule as transformers has it: a pattern on disk, and what it is in memory."""

    source: str
    target: str
    scope_prefix: str | None = None
    base_model_prefix: str | None = None

    def rename_source_key(self, key: str) -> tuple[str, str | None]:
        """Return the key renamed, and the pattern where it took it; a scoped rule looks only inside its scope."""
        if self.scope_prefix is not None and f"{self.scope_prefix}." not in key:
            return key, None
        renamed = re.sub(self.source, self.target, key)
        return renamed, self.source if re.search(self.source, key) else None


@dataclass
class WeightConverter(WeightRenaming):
    """A rule that does something to tensors, too."""

    operations: list[Any] = field(default_factory=list)
    more_targets: tuple[str, ...] = ()

    @property
    def source_patterns(self) -> list[str]:
        """Its patterns."""
        return [self.source]

    @property
    def target_patterns(self) -> list[str]:
        """What it makes."""
        return [self.target, *self.more_targets]


class Interleave:
    """An operation that is not ours to do."""


class Split:
    """Another one."""


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a transformers that has these rules, by model type."""

    def install(**rules: list[Any]) -> None:
        package, mapping, loading = (
            ModuleType(name)
            for name in ("transformers", "transformers.conversion_mapping", "transformers.core_model_loading")
        )
        package.__version__ = "5.99.0"  # type: ignore[attr-defined]
        mapping.get_checkpoint_conversion_mapping = rules.get  # type: ignore[attr-defined]

        class Plain(WeightRenaming):
            """What is a renaming and no more."""

        loading.WeightRenaming = Plain  # type: ignore[attr-defined]
        for rule in (rule for them in rules.values() for rule in them if type(rule) is WeightRenaming):
            rule.__class__ = Plain
        for module in (package, mapping, loading):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


def _base(folder: Path, numbers: Numbers, key: str, **config: object) -> dict[str, torch.Tensor]:
    tensors = {key: numbers(4, 6), "model.norm.weight": numbers(6)}
    write_base(folder, tensors, **{"model_type": "new_moe", **config})
    return tensors


def test_what_no_rule_of_ours_knows_is_asked_for(tmp_path: Path, say: Callable[..., None]) -> None:
    numbers, key = Numbers(), "model.layers.0.attention.dense.weight"
    base = _base(tmp_path / "b", numbers, key)
    lora = pair(numbers, "model.layers.0.self_attn.o_proj", 4, 6)
    write_adapter(tmp_path / "a", lora, target_modules=["o_proj"])
    with pytest.raises(
        errors.AdapterMismatchError, match=r"the base has no model\.layers\.0\.self_attn\.o_proj\.weight"
    ):
        plan_merge(tmp_path / "b", tmp_path / "a")

    say(new_moe=[WeightRenaming(r"\.attention\.dense\.", ".self_attn.o_proj.")])
    found, _ = merged(tmp_path / "b", tmp_path / "a", tmp_path / "out")

    product = 1.5 * exact(lora["model.layers.0.self_attn.o_proj.lora_B.weight"])
    product = product @ exact(lora["model.layers.0.self_attn.o_proj.lora_A.weight"])
    assert close(found[key], exact(base[key]) + product)
    assert "was asked of transformers 5.99.0" in " ".join(plan_merge(tmp_path / "b", tmp_path / "a").notes)


def test_a_base_that_is_read_without_it_is_read_without_it(tmp_path: Path, say: Callable[..., None]) -> None:
    numbers, key = Numbers(), "model.layers.0.self_attn.o_proj.weight"
    _base(tmp_path / "b", numbers, key)
    write_adapter(tmp_path / "a", pair(numbers, key.removesuffix(".weight"), 4, 6), target_modules=["o_proj"])

    say(new_moe=[WeightRenaming(r"\.o_proj\.", ".something_else.")])

    assert not [note for note in plan_merge(tmp_path / "b", tmp_path / "a").notes if "transformers" in note]


def test_what_is_computed_on_the_way_is_refused(tmp_path: Path, say: Callable[..., None]) -> None:
    numbers, key = Numbers(), "model.layers.0.attention.dense.weight"
    _base(tmp_path / "b", numbers, key)
    write_adapter(tmp_path / "a", pair(numbers, "model.layers.0.self_attn.o_proj", 4, 6), target_modules=["o_proj"])
    rule = WeightConverter(r"\.attention\.dense\.", ".self_attn.o_proj.", operations=[Interleave()])
    say(new_moe=[rule])

    with pytest.raises(
        errors.UnsupportedBaseError, match=r"not stored as it is in memory \(Interleave by transformers"
    ):
        plan_merge(tmp_path / "b", tmp_path / "a")


def test_what_lies_joined_with_others_is_refused(tmp_path: Path, say: Callable[..., None]) -> None:
    numbers, key = Numbers(), "model.layers.0.attention.in_proj.weight"
    _base(tmp_path / "b", numbers, key)
    write_adapter(tmp_path / "a", pair(numbers, "model.layers.0.attention.k_proj", 4, 6), target_modules=["k_proj"])
    say(new_moe=[WeightConverter("in_proj", "q_proj", operations=[Split()], more_targets=("k_proj",))])

    with pytest.raises(errors.UnsupportedBaseError, match=r"k_proj\.weight is not stored by itself \(Split by"):
        plan_merge(tmp_path / "b", tmp_path / "a")


def test_a_model_inside_another_has_rules_of_its_own(say: Callable[..., None]) -> None:
    say(text_moe=[WeightRenaming("dense", "o_proj")])
    keys = ["model.language_model.layers.0.dense.weight", "model.visual.dense.weight"]

    found = installed_names({"model_type": "vl_moe", "text_config": {"model_type": "text_moe"}}, keys)

    assert found is not None
    assert found.in_memory == {keys[0]: "model.language_model.layers.0.o_proj.weight"}


def test_nothing_is_said_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)

    assert installed_names({"model_type": "new_moe"}, ["a.weight"]) is None
