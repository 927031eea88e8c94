"""Calls of ours by the names that a release has: the oldest supported ones and the newest."""

from __future__ import annotations

import dataclasses

import pytest

from harness.contract.supported import OLDEST
from harness.worker.observation import UnsupportedError
from harness.worker.releases import dtype_argument, known_to_lora, known_to_trainer, release


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("4.52.4", (4, 52)), ("5.0.0rc3", (5, 0)), ("5.1rc1", (5, 1)), ("0.19.2.dev0", (0, 19)), ("5", (5, 0)),
        ("5.24.0+cpu", (5, 24)),
    ],
)  # fmt: skip
def test_a_release_is_major_and_minor(version: str, expected: tuple[int, int]) -> None:
    assert release(version) == expected


def test_what_begins_with_no_number_is_no_release() -> None:
    with pytest.raises(ValueError, match="begins with no number"):
        release("main")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (OLDEST["transformers"], "torch_dtype"), ("4.55.4", "torch_dtype"), ("4.56.0", "dtype"), ("4.57.6", "dtype"),
        ("5.0.0rc3", "dtype"), ("5.24.0", "dtype"),
    ],
)  # fmt: skip
def test_the_dtype_is_asked_for_by_the_name_that_the_release_knows(version: str, expected: str) -> None:
    assert dtype_argument(version) == expected


@dataclasses.dataclass
class OldTrainer:
    """SFTConfig as trl 0.18 has it, as far as these tests go."""

    max_seq_length: int = 0
    packing: bool = False


@dataclasses.dataclass
class OldLora:
    """LoraConfig as peft 0.15 has it."""

    r: int = 8
    target_modules: list[str] | None = None


def test_a_feature_that_a_release_lacks_is_unsupported_and_a_new_rename_is_an_error() -> None:
    assert known_to_trainer(OldTrainer, {"max_length": 16, "use_cpu": True}) == {"max_seq_length": 16}
    with pytest.raises(UnsupportedError, match=r"no SFTConfig option assistant_only_loss \(assistant_only_loss came"):
        known_to_trainer(OldTrainer, {"assistant_only_loss": True})
    with pytest.raises(TypeError, match="no SFTConfig option padding_of_tomorrow"):
        known_to_trainer(OldTrainer, {"padding_of_tomorrow": True})


def test_fused_experts_are_unsupported_where_peft_cannot_be_told_of_parameters() -> None:
    assert known_to_lora(OldLora, {"target_modules": ["q_proj"]}) == {"target_modules": ["q_proj"]}
    with pytest.raises(UnsupportedError, match="no LoraConfig option target_parameters"):
        known_to_lora(OldLora, {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]})
