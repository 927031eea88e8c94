"""A second engine in the socket: what PEFT's own merge gets right on real stacks, and what it loses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from real_stacks import NEWEST, NO_RELOAD, SWAPPED, Ran, ask
from safetensors.torch import load_file, save_file

from harness.matrix.catalogue import read_catalogue

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

PEFT_CELLS = {
    f"qwen3_moe/lora@{NEWEST}+engine=peft": (56, 0),
    f"glm4_moe/lora@{NEWEST}+engine=peft": (69, 44),
    f"deepseek_v3/lora@{NEWEST}+engine=peft": (72, 44),
    f"qwen3_5_moe/lora@{NEWEST}+engine=peft": (19, 39),
    f"qwen3_moe/lora@{SWAPPED}+engine=peft": (56, 0),
    f"qwen3_5_moe/lora@{SWAPPED}+engine=peft": (19, 39),
    f"qwen3_moe/lora@{NEWEST}+dtype=bf16+engine=peft": (56, 0),
    f"qwen3_moe/qlora4@{NEWEST}+engine=peft+geometry=blocks": (56, 0),
}
"""Cell → tensors that a LoRA covers, and tensors of prediction layers: by hand, from the families' descriptions."""
BYTE_EXACT = ("config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize(("cell", "counts"), PEFT_CELLS.items())
def test_every_tensor_is_merged_and_what_the_model_does_not_load_is_lost(
    matrix_run: Ran, cell: str, counts: tuple[int, int]
) -> None:
    result = matrix_run.result(cell)
    covered, extras = counts
    failed = {check["name"] for check in result["checks"] if not check["passed"]}

    assert result["merge"]["applied"] == result["merge"]["attempted"] == covered
    assert result["metrics"]["keys_missing"] == extras
    assert result["metrics"]["keys_unexpected"] == 0
    assert result["outcome"] == ("fail" if extras else "pass"), result["reason"]
    assert failed == ({"keys"} if extras else set())


@pytest.mark.parametrize("engine", read_catalogue().engines)
def test_what_any_engine_leaves_is_judged(matrix_run: Ran, engine: str) -> None:
    """What it loses is an expectation of its own, in expectations.toml; that it was looked at is asked of every one."""
    option = "" if engine == "reference" else f"+engine={engine}"
    result = matrix_run.result(f"qwen3_moe/lora@{NEWEST}{option}")

    assert result["cell"]["engine"] == engine
    assert result["stages"]["merge"]["result"] == "pass", result["reason"]
    assert result["merge"]["attempted"] == 56, "two layers of four projections and eight experts with three each"
    assert all(control["rejected"] for control in result["controls"])


@pytest.mark.parametrize("cell", PEFT_CELLS)
def test_it_claims_nothing_and_what_it_took_is_measured(matrix_run: Ran, cell: str) -> None:
    merge = matrix_run.result(cell)["merge"]

    assert (merge["engine_applied"], merge["fallback"]) == (None, None)
    assert 0 < merge["engine_seconds"] < 60
    assert 300 < merge["engine_peak_memory_mb"] < 8192, "torch, transformers and PEFT alone take more than 300 MiB"


@pytest.mark.parametrize("cell", PEFT_CELLS)
def test_every_control_is_tried_whoever_merges(matrix_run: Ran, cell: str) -> None:
    controls = matrix_run.result(cell)["controls"]

    assert {control["name"] for control in controls} >= {"base-copied", "b-packing"}
    assert all(control["rejected"] for control in controls)


def test_fused_experts_that_are_written_one_by_one_are_judged_and_told(matrix_run: Ran) -> None:
    merge = matrix_run.result(f"qwen3_5_moe/lora@{NEWEST}+engine=peft")["merge"]

    assert merge["renamed"] == {"fused experts one by one": 4}, "two layers with two parameters each"
    assert merge["by_kind"]["expert"] == {
        "attempted": 4, "applied": 4, "zero_delta": 0, "below_rounding": 0, "dropped": 0, "wrong": 0,
    }  # fmt: skip


def test_files_in_other_words_are_told(matrix_run: Ran) -> None:
    merge = matrix_run.result(f"qwen3_moe/lora@{NEWEST}+engine=peft")["merge"]
    ours = matrix_run.result(f"qwen3_moe/lora@{NEWEST}")["merge"]

    assert set(BYTE_EXACT) <= set(merge["files_rewritten"])
    assert (ours["files_rewritten"], ours["renamed"]) == ([], {})


def test_bf16_is_rounded_twice_on_fused_experts(matrix_run: Ran) -> None:
    peft, ours = (
        matrix_run.result(f"qwen3_moe/lora@{NEWEST}+dtype=bf16{engine}")["metrics"] for engine in ("+engine=peft", "")
    )

    assert ours["tensors_exact_fraction"] > 0.9999
    assert 0.8 < peft["tensors_exact_fraction"] < 0.95
    assert 0.5 < peft["max_ulp"] <= 1.0
    assert ours["max_ulp"] < 0.5 + 1e-3


def test_an_engine_that_cannot_load_the_adapter_is_an_error_of_the_merge_too(matrix_run: Ran) -> None:
    result = matrix_run.result(f"qwen3_moe/lora@{NO_RELOAD}+engine=peft")
    stages = {name: stage["result"] for name, stage in result["stages"].items()}

    assert (stages["reload-adapter"], stages["merge"], stages["compare"]) == ("error", "error", "not_run")
    assert "distributed_operation" in result["stages"]["merge"]["reason"]


def test_every_table_says_what_merged(matrix_run: Ran) -> None:
    markdown = (matrix_run.out / "report.md").read_text()
    csv = (matrix_run.out / "report.csv").read_text()

    assert "| merged by" in markdown
    assert re.search(r"^\| 5\.23\.0 / 0\.21\.2 / 1\.16\.0 *\| `peft` *\|", markdown, re.MULTILINE)
    assert csv.splitlines()[0].startswith("cell,transformers,peft,trl,family,recipe,engine,")
    assert 'name="qwen3_moe/lora by peft"' in (matrix_run.out / "junit.xml").read_text()


# What says the same in other words, asked of the release itself


def _edited(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


TOKENIZER_SETTINGS = {
    "padding_side": "left", "truncation_side": "left", "model_input_names": ["input_ids"], "model_max_length": 4,
    "clean_up_tokenization_spaces": True, "split_special_tokens": True, "add_prefix_space": True, "unheard_of": 1,
    "tokenizer_class": "LlamaTokenizer", "auto_map": {"AutoTokenizer": ["x.Y", None]},
    "extra_special_tokens": ["t7"],
}  # fmt: skip
TOKENIZER_RULES = {
    "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<pad>",
    },
    "post_processor": {
        "type": "TemplateProcessing", "pair": [],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    },
}  # fmt: skip


def test_a_tokenizer_class_that_does_not_exist_is_another_meaning(matrix_run: Ran, tmp_path: Path) -> None:
    """The name is no class. Both names of the one class are, and are excused in whatever order they stand."""
    kept = matrix_run.work(f"qwen3_moe/lora@{NEWEST}+engine=peft")
    names = ("NoSuchTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", "Trainer", None)
    cases = []
    for name in names:
        merged = tmp_path / str(name)
        shutil.copytree(kept / "merged", merged)
        _edited(merged / "tokenizer_config.json", {"tokenizer_class": name})
        cases.append({"base": str(kept / "base"), "merged": str(merged)})
    said = ask(NEWEST, Path(__file__).with_name("meaning_program.py"), cases, tmp_path)

    assert [name for name, excused in zip(names, said, strict=True) if "tokenizer_config.json" in excused] == [
        "PreTrainedTokenizerFast", "TokenizersBackend",
    ]  # fmt: skip


def test_a_configuration_must_say_what_a_right_merge_changes(matrix_run: Ran, tmp_path: Path) -> None:
    """A merge that resizes or unties ends changes what config.json means; one that says what the base did is wrong."""
    kept = matrix_run.work(f"qwen3_moe/lora@{NEWEST}+engine=peft")
    changed = {"vocab_size": 109, "tie_word_embeddings": True}
    cases = []
    for number, said in enumerate(({}, {"vocab_size": 109}, changed)):
        merged = tmp_path / str(number)
        shutil.copytree(kept / "merged", merged)
        _edited(merged / "config.json", said)
        cases.append({"base": str(kept / "base"), "merged": str(merged), "settings": changed})
    said = ask(NEWEST, Path(__file__).with_name("meaning_program.py"), cases, tmp_path)

    assert ["config.json" in excused for excused in said] == [False, False, True]


def test_another_meaning_is_never_taken_for_other_words(matrix_run: Ran, tmp_path: Path) -> None:
    """Each case spoils one thing of a merge that PEFT saved rightly; what is excused then must not name it."""
    kept = matrix_run.work(f"qwen3_moe/lora@{NEWEST}+engine=peft")
    spoil = {
        "as saved": lambda _: None,
        "experts per token": lambda d: _edited(d / "config.json", {"num_experts_per_tok": 3}),
        "rope": lambda d: _edited(d / "config.json", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
        "no config": lambda d: (d / "config.json").unlink(),
        "stop token": lambda d: _edited(d / "generation_config.json", {"eos_token_id": 7}),
        "chat template": lambda d: (d / "chat_template.jinja").write_text("{{ messages[0]['content'] }}"),
        "words": lambda d: _edited(d / "tokenizer.json", {"pre_tokenizer": None}),
        "special token": lambda d: _edited(d / "tokenizer_config.json", {"eos_token": "<bos>"}),
        **{
            f"tokenizer's {setting}": lambda d, s=setting, v=value: _edited(d / "tokenizer_config.json", {s: v})
            for setting, value in TOKENIZER_SETTINGS.items()
        },
        **{
            f"tokenizer's rule {rule}": lambda d, r=rule, v=value: _edited(d / "tokenizer.json", {r: v})
            for rule, value in TOKENIZER_RULES.items()
        },
        "no JSON": lambda d: (d / "tokenizer.json").write_text("not JSON"),
        "no tokenizer": lambda d: (d / "tokenizer.json").write_text("{}"),
        "config of another type": lambda d: (d / "config.json").write_text("[]"),
        "size that is a word": lambda d: _edited(d / "config.json", {"hidden_size": "x"}),
        "second weights": lambda d: save_file(load_file(d / "model.safetensors"), d / "model-2.safetensors"),
    }
    files = {
        "experts per token": "config.json", "rope": "config.json", "no config": "config.json",
        "stop token": "generation_config.json", "chat template": "chat_template.jinja", "words": "tokenizer.json",
        "special token": "tokenizer_config.json", "second weights": "model-2.safetensors", "no JSON": "tokenizer.json",
        "no tokenizer": "tokenizer.json", "config of another type": "config.json", "size that is a word": "config.json",
        **{f"tokenizer's {setting}": "tokenizer_config.json" for setting in TOKENIZER_SETTINGS},
        **{f"tokenizer's rule {rule}": "tokenizer.json" for rule in TOKENIZER_RULES},
    }  # fmt: skip
    cases = []
    for name, change in spoil.items():
        merged = tmp_path / name.replace(" ", "-")
        shutil.copytree(kept / "merged", merged)
        change(merged)
        cases.append({"base": str(kept / "base"), "merged": str(merged)})
    said = dict(zip(spoil, ask(NEWEST, Path(__file__).with_name("meaning_program.py"), cases, tmp_path), strict=True))

    assert set(said["as saved"]) >= {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"}
    assert {name: files[name] in excused for name, excused in said.items() if name in files} == dict.fromkeys(
        files, False
    )
