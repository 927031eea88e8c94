"""What the audit says of a merged config.json that is not the base's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from format_samples import HIDDEN, Numbers, delta, pair, small_base, write_adapter, write_base

from harness.merge import AuditReport, audit

Q = "model.layers.0.self_attn.q_proj"
BASE = {
    "model_type": "qwen3_moe", "hidden_size": 64, "num_experts_per_tok": 8, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "layer_types": ["full_attention", "linear_attention"], "pad_token_id": 0, "vocab_size": 11,
    "torch_dtype": "float32", "transformers_version": "4.57.0", "sliding_window": 4096, "num_nextn_predict_layers": 1,
}  # fmt: skip


def judged(folder: Path, changes: dict[str, object], base_changes: dict[str, object] | None = None) -> AuditReport:
    """The report on a right merge beside this config.json."""
    numbers = Numbers()
    tensors, lora = small_base(numbers), pair(numbers, Q, 7, HIDDEN)
    right = {**tensors, f"{Q}.weight": (tensors[f"{Q}.weight"].double() + torch.tensor(delta(lora, Q))).float()}
    base = write_base(folder / "b", tensors, **{**BASE, **(base_changes or {})})
    return audit(base, write_adapter(folder / "a", lora), write_base(folder / "m", right, **{**BASE, **changes}))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("hidden_size", 128, "hidden_size is 128, and the base's is 64"),
        ("num_experts_per_tok", 2, "num_experts_per_tok is 2, and the base's is 8"),
        ("rms_norm_eps", 1e-5, "rms_norm_eps is 1e-05, and the base's is 1e-06"),
        ("model_type", None, "model_type is missing, and the base's is qwen3_moe"),
        ("model_type", "llama", "model_type is llama, and the base's is qwen3_moe"),
        ("vocab_size", 12, "vocab_size is 12, and the base's is 11"),
        ("tie_word_embeddings", True, "tie_word_embeddings is True, and the base's is False"),
        (
            "layer_types",
            ["full_attention"] * 2,
            (
                "layer_types is ['full_attention', 'full_attention'], and the base's is"
                " ['full_attention', 'linear_attention']"
            ),
        ),
        ("rope_parameters", {"rope_theta": 10000.0}, None),
        ("text_config", {"hidden_size": 64}, None),
    ],
)
def test_what_describes_another_model_fails(tmp_path: Path, name: str, value: object, told: str | None) -> None:
    """What is said twice is believed when either is the base's."""
    report = judged(tmp_path, {name: value})

    assert report.config_changes == (() if told is None else (told,))
    assert report.exit_code == (0 if told is None else 1)
    assert report.sentence.endswith("config.json describes another model than the base's") is (told is not None)
    assert json.loads(json.dumps(report.to_json()))["config_changes"] == list(report.config_changes)


def test_what_moved_or_was_written_anew_is_no_change(tmp_path: Path) -> None:
    """As transformers 5 writes it: RoPE in one place, the decoder under its own name, defaults that come and go."""
    report = judged(
        tmp_path,
        {
            "model_type": "qwen3_moe_text", "torch_dtype": None, "dtype": "bfloat16", "transformers_version": "5.0.0",
            "rope_theta": None, "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
            "sliding_window": None,
            "architectures": ["Other"], "use_cache": False, "head_dim": 32,
        },
    )  # fmt: skip

    assert report.ok
    assert (report.config_changes, report.notes) == ((), ())


def test_rope_that_changed_on_its_way_to_its_new_place(tmp_path: Path) -> None:
    report = judged(tmp_path, {"rope_theta": None, "rope_parameters": {"rope_theta": 10000.0}})

    assert report.config_changes == ("rope_theta is 10000.0, and the base's is 1000000.0",)


def test_a_setting_inside_text_config(tmp_path: Path) -> None:
    nested = {"text_config": {"moe_intermediate_size": 32}}

    report = judged(tmp_path, {"text_config": {"moe_intermediate_size": 48}}, nested)
    flat = judged(tmp_path / "flat", {"moe_intermediate_size": 48}, nested)

    assert report.config_changes == flat.config_changes == ("moe_intermediate_size is 48, and the base's is 32",)


def test_what_does_not_change_the_model_is_a_note(tmp_path: Path) -> None:
    report = judged(tmp_path, {"pad_token_id": 5, "num_nextn_predict_layers": 0})

    assert report.ok
    assert report.notes == (
        "config.json: num_nextn_predict_layers is 0, and the base's is 1",
        "config.json: pad_token_id is 5, and the base's is 0",
    )


def test_a_quantisation_that_the_base_does_not_have(tmp_path: Path) -> None:
    """As a QLoRA run leaves it in the configuration of a model that was merged in 16 bits."""
    report = judged(tmp_path, {"quantization_config": {"load_in_4bit": True}})

    assert report.config_problems == ("quantization_config is there, and the base is not quantised",)
    assert report.exit_code == 1
