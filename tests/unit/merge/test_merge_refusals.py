"""Every condition that ends a merge: its class, its exit code, its message, and nothing left on disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from merge_samples import Sample, Spec, build, write_safetensors
from safetensors.torch import load_file, save_file

from harness.merge import errors, merge, plan_merge
from harness.merge.base.codecs import codecs

EXPERTS = "base_model.model.model.layers.0.mlp.experts"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return build(tmp_path)


@pytest.fixture(autouse=True)
def _nothing_published(tmp_path: Path) -> Iterator[None]:
    """Whatever a test here provokes, only the inputs are there afterwards."""
    yield
    left = {path.name for path in tmp_path.iterdir()}

    assert left <= {"base", "adapter", "elsewhere", "hub"}


def refuse(
    sample: Sample, error: type[errors.MergeError], code: int, *fragments: str, **options: object
) -> errors.MergeError:
    """Merge and assert the error's class, exit code and what its message says; return the error."""
    with pytest.raises(errors.MergeError) as caught:
        merge(plan_merge(sample.base, sample.adapter, **options), sample.base.parent / "out")  # type: ignore[arg-type]  # options by name

    assert type(caught.value) is error, caught.value
    assert caught.value.exit_code == code
    for fragment in fragments:
        assert fragment in caught.value.message
    return caught.value


def edit_json(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def shard_with(sample: Sample, key: str) -> Path:
    index = json.loads((sample.base / INDEX).read_text())
    return sample.base / str(index["weight_map"][key])


# --- the base -------------------------------------------------------------------------------------------------------


def test_a_missing_directory(sample: Sample, tmp_path: Path) -> None:
    with pytest.raises(errors.InputNotFoundError, match="does not exist") as caught:
        plan_merge(tmp_path / "nowhere", sample.adapter)

    assert caught.value.exit_code == 2


def test_a_missing_shard(sample: Sample) -> None:
    (sample.base / "model-00002-of-00003.safetensors").unlink()

    refuse(sample, errors.InconsistentCheckpointError, 5, "holds no model-00002-of-00003.safetensors")


def test_a_truncated_shard(sample: Sample) -> None:
    path = sample.base / "model-00002-of-00003.safetensors"
    os.truncate(path, path.stat().st_size - 1)

    refuse(sample, errors.CorruptFileError, 5, "model-00002-of-00003.safetensors is truncated")


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 4996670464\n"


@pytest.mark.parametrize(
    "name", ["base/model-00002-of-00003.safetensors", "adapter/adapter_model.safetensors", "base/extra.safetensors"]
)
def test_a_git_lfs_pointer_in_place_of_weights(sample: Sample, name: str) -> None:
    """What a clone without git-lfs leaves."""
    (sample.base.parent / name).write_text(POINTER)

    error = refuse(sample, errors.CorruptFileError, 5, f"{Path(name).name} is a Git LFS pointer")

    assert "git lfs pull" in (error.remedy or "")


def test_a_shard_truncated_inside_its_header(sample: Sample) -> None:
    os.truncate(sample.base / "model-00002-of-00003.safetensors", 20)

    refuse(sample, errors.CorruptFileError, 5, "truncated")


def test_bytes_after_the_last_tensor(sample: Sample) -> None:
    with (sample.base / "model-00001-of-00003.safetensors").open("ab") as file:
        file.write(b"x")

    refuse(sample, errors.CorruptFileError, 5, "belong to no tensor")


def entry(start: int, stop: int, *, dtype: object = "F32", shape: object = (1,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "data", "fragment"),
    [
        (b"{ ", 0, "not valid JSON"),
        (b"[]", 0, "JSON object"),
        (b"[" * 50_000, 0, "nested too deeply"),
        (b'{"a": NaN}', 0, "NaN"),
        (b'{"a": {}, "a": {}}', 0, "twice"),
        (b'{"a": "\xff"}', 0, "not valid JSON"),
        ({"a": 1}, 0, "exactly dtype"),
        ({"a": {**entry(0, 4), "more": 1}}, 4, "exactly dtype"),
        ({"a": entry(0, 4, dtype="F31")}, 4, "unknown dtype"),
        ({"a": entry(0, 4, dtype=["F32"])}, 4, "unknown dtype"),
        ({"a": entry(0, 4, shape="1")}, 4, "list of"),
        ({"a": entry(0, 4, shape=(True,))}, 4, "integers"),
        ({"a": entry(0, 4, shape=(1,) * 9)}, 4, "at most 8"),
        ({"a": entry(0, 0, shape=(0,))}, 0, "zero"),
        ({"a": entry(0, 4, shape=(-1,))}, 4, "negative"),
        ({"a": entry(0, 4, shape=(10**30,))}, 4, "absurd"),
        ({"a": entry(0, 4, shape=(2**40, 2**40))}, 4, "does not fill"),
        ({"a": entry(4, 0)}, 4, "backwards"),
        ({"a": entry(-4, 0)}, 4, "backwards"),
        ({"a": entry(0, 8)}, 8, "does not fill"),
        ({"a": {**entry(0, 4), "data_offsets": [0, 4.0]}}, 4, "two integers"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, 6, "overlaps"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "gap"),
        ({"a": entry(4, 8)}, 8, "gap"),
        ({"a": entry(0, 4), "__metadata__": {"format": 1}}, 4, "strings"),
    ],
)
def test_a_malformed_header(sample: Sample, header: object, data: int, fragment: str) -> None:
    write_safetensors(sample.base / "model-00003-of-00003.safetensors", header, b"\0" * data)

    refuse(sample, errors.CorruptFileError, 5, fragment)


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**62, 2**64 - 1])
def test_a_header_length_that_cannot_be(sample: Sample, length: int) -> None:
    write_safetensors(sample.base / "model-00003-of-00003.safetensors", {}, b"1234", length=length)

    refuse(sample, errors.CorruptFileError, 5, "not a safetensors file, or is truncated")


def test_an_index_entry_without_a_tensor(sample: Sample) -> None:
    edit_json(sample.base / INDEX, lambda index: index["weight_map"].update(ghost="model-00001-of-00003.safetensors"))  # type: ignore[attr-defined]  # JSON

    refuse(sample, errors.InconsistentCheckpointError, 5, "no shard holds: ghost")


def test_a_tensor_without_an_index_entry(sample: Sample) -> None:
    edit_json(sample.base / INDEX, lambda index: index["weight_map"].pop("lm_head.weight"))  # type: ignore[attr-defined]  # JSON

    refuse(sample, errors.InconsistentCheckpointError, 5, "does not name", "lm_head.weight")


def test_a_tensor_in_another_shard_than_the_index_says(sample: Sample) -> None:
    here = shard_with(sample, "lm_head.weight").name
    other = next(f"model-0000{n}-of-00003.safetensors" for n in (1, 2) if str(n) not in here[:11])
    edit_json(sample.base / INDEX, lambda index: index["weight_map"].update({"lm_head.weight": other}))  # type: ignore[attr-defined]  # JSON

    refuse(sample, errors.InconsistentCheckpointError, 5, "other shards", "lm_head.weight")


def test_a_tensor_in_two_shards(sample: Sample) -> None:
    path = next(p for p in sorted(sample.base.glob("*.safetensors")) if p != shard_with(sample, "lm_head.weight"))
    save_file({**load_file(path), "lm_head.weight": sample.tensors["lm_head.weight"]}, path)

    refuse(sample, errors.InconsistentCheckpointError, 5, "lm_head.weight is in two shards")


def test_a_missing_index(sample: Sample) -> None:
    (sample.base / INDEX).unlink()

    refuse(sample, errors.InconsistentCheckpointError, 5, f"{INDEX} is missing")


def test_a_single_file_beside_an_index_that_does_not_name_it(sample: Sample) -> None:
    save_file({"a": torch.zeros(1)}, sample.base / "model.safetensors")

    refuse(sample, errors.InconsistentCheckpointError, 5, "holds both")


def test_pickled_weights(sample: Sample) -> None:
    for path in [*sample.base.glob("*.safetensors"), sample.base / INDEX]:
        path.unlink()
    (sample.base / "pytorch_model.bin").write_bytes(b"\x80\x04")

    refuse(sample, errors.UnsafeFormatError, 5, "pytorch_model.bin", "run code")


@pytest.mark.parametrize(
    "name", ["../elsewhere.safetensors", "/etc/passwd", "..", "a/b.safetensors", "x\0.safetensors"]
)
def test_an_index_that_leaves_the_directory(sample: Sample, name: str) -> None:
    edit_json(sample.base / INDEX, lambda index: index["weight_map"].update({"lm_head.weight": name}))  # type: ignore[attr-defined]  # JSON

    refuse(sample, errors.UnsafePathError, 5, "plain name")


@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "tokenizer.json", "config.json"])
def test_a_link_that_leaves_the_directory(sample: Sample, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.move(sample.base / name, tmp_path / "elsewhere" / name)
    (sample.base / name).symlink_to(tmp_path / "elsewhere" / name)

    refuse(sample, errors.UnsafePathError, 5, name, "leaves its directory")


def test_a_linked_directory_and_a_pipe(sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (sample.base / "linked").symlink_to(tmp_path / "elsewhere")
    refuse(sample, errors.UnsafePathError, 5, "linked")
    (sample.base / "linked").unlink()
    os.mkfifo(sample.base / "pipe")

    refuse(sample, errors.UnsafePathError, 5, "pipe is not a plain file")


def test_an_expert_missing_from_the_whole_checkpoint(sample: Sample) -> None:
    key = "model.layers.1.mlp.experts.3.up_proj.weight"
    path = shard_with(sample, key)
    save_file({name: tensor for name, tensor in load_file(path).items() if name != key}, path)
    edit_json(sample.base / INDEX, lambda index: index["weight_map"].pop(key))  # type: ignore[attr-defined]  # JSON

    refuse(sample, errors.InconsistentCheckpointError, 5, "should have 4 experts; missing: 3")


def test_a_config_that_contradicts_the_experts_on_disk(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(disk="fused"))
    edit_json(sample.base / "config.json", lambda config: config.update(n_routed_experts=8))

    refuse(sample, errors.InconsistentCheckpointError, 5, "holds 4 experts, config.json declares 8")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_a_base_in_a_format_that_is_not_decoded(sample: Sample, dtype: torch.dtype) -> None:
    key = "model.layers.0.mlp.experts.2.down_proj.weight"
    path = shard_with(sample, key)
    tensors = load_file(path)
    save_file({**tensors, key: tensors[key].to(dtype)}, path)
    refuse(sample, errors.UnsupportedBaseError, 5, key, "is stored as")
    edit_json(sample.base / "config.json", lambda config: config.update(quantization_config={"quant_method": "awq"}))

    refuse(sample, errors.UnsupportedBaseError, 5, "'awq'", ", ".join(codecs()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_tensor_that_is_not_finite_where_it_changes(sample: Sample, value: float) -> None:
    key = "model.layers.0.mlp.experts.2.down_proj.weight"
    path = shard_with(sample, key)
    tensors = load_file(path)
    tensors[key][0, 0] = value
    save_file(tensors, path)

    refuse(sample, errors.NonFiniteError, 5, key, "the base holds")


def test_a_result_that_does_not_fit_the_dtype(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(strength=1e6))

    refuse(sample, errors.NonFiniteError, 5, "does not fit torch.float16", dtype="float16")


# --- the adapter ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_an_adapter_that_is_not_finite(sample: Sample, value: float, half: str) -> None:
    sample.adapter_tensors[f"{EXPERTS}.{half}.weight"][1, 1] = value
    sample.save_adapter()

    refuse(sample, errors.NonFiniteError, 5, half, "model.layers.0.mlp.experts")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("bias", "some"), ("layer_replication", [[0, 1]]),
        ("peft_type", "LOHA"), ("peft_type", None), ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("alora_invocation_tokens", [3]), ("kasa_config", {"beta": 1}),
    ],
)  # fmt: skip
def test_a_feature_that_is_not_merged_is_refused_by_name(sample: Sample, setting: str, value: object) -> None:
    sample.config[setting] = value
    sample.save_adapter()
    said = str(value) if setting == "init_lora_weights" else setting

    refuse(sample, errors.UnsupportedAdapterError, 5, said)


@pytest.mark.parametrize(
    ("key", "shape", "error", "said"),
    [
        ("lm_head.weight", (3, 3), errors.AdapterMismatchError, "[3, 3]"),
        ("model.layers.0.input_layernorm.weight", (6,), errors.UnsupportedAdapterError, "modules_to_save"),
        ("model.layers.0.self_attn.q_proj.lora_C.weight", (3, 3), errors.UnsupportedAdapterError, "LoRA variant"),
        ("model.layers.0.linear_attn.conv1d.lora_A.weight", (2, 3, 4), errors.UnsupportedAdapterError, "convolutions"),
        ("model.embed_tokens.lora_embedding_A", (2, 3), errors.MalformedAdapterError, "without lora_embedding_B"),
        (
            "model.layers.0.self_attn.q_proj.lora_magnitude_vector",
            (7,),
            errors.MalformedAdapterError,
            "use_dora = false",
        ),
        ("model.layers.0.self_attn.q_proj.lora_B.bias", (7,), errors.MalformedAdapterError, "lora_bias = false"),
        ("model.layers.0.self_attn.k_proj.lora_B.bias", (3,), errors.MalformedAdapterError, "without lora_A"),
        ("model.layers.0.self_attn.q_proj.lora_A.other.weight", (2, 6), errors.MalformedAdapterError, "adapter names"),
        (
            "model.embed_tokens.token_adapter.trainable_tokens_delta",
            (2, 6),
            errors.MalformedAdapterError,
            "2 trained tokens",
        ),
    ],
)
def test_a_tensor_that_does_not_belong_is_refused_by_name(
    sample: Sample, key: str, shape: tuple[int, ...], error: type[errors.MergeError], said: str
) -> None:
    sample.adapter_tensors[f"base_model.model.{key}"] = torch.zeros(shape)
    sample.save_adapter()

    refuse(sample, error, 5, said)


@pytest.mark.parametrize(
    ("setting", "value", "error", "said"),
    [
        ("use_dora", True, errors.MalformedAdapterError, "lacks the tensors"),
        ("lora_bias", True, errors.MalformedAdapterError, "lacks the tensors"),
        ("modules_to_save", ["lm_head"], errors.UncoveredTargetsError, "lm_head"),
        ("trainable_token_indices", [1], errors.UncoveredTargetsError, "trainable_token_indices"),
        ("trainable_token_indices", [1, 1], errors.MalformedAdapterError, "twice"),
        ("trainable_token_indices", {"embed_tokens": "1"}, errors.MalformedAdapterError, "lists of token numbers"),
        ("bias", "all", errors.UncoveredTargetsError, "e_score_correction_bias"),
        ("fan_in_fan_out", True, errors.UnsupportedAdapterError, "lora.ParamWrapper does not work with fan_in_fan_out"),
    ],
)  # fmt: skip
def test_a_feature_that_the_file_does_not_hold(
    sample: Sample, setting: str, value: object, error: type[errors.MergeError], said: str
) -> None:
    sample.config[setting] = value
    sample.save_adapter()

    refuse(sample, error, 5, said)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("r", 0),
        ("r", "8"),
        ("r", True),
        ("lora_alpha", "big"),
        ("lora_alpha", -1),
        ("lora_alpha", 10**400),
        ("lora_alpha", None),
        ("r", 10**400),
        ("use_rslora", "false"),
        ("rank_pattern", [1]),
        ("alpha_pattern", {"a": None}),
        ("target_modules", 3),
        ("target_parameters", "experts"),
        ("layers_to_transform", "0"),
    ],
)
def test_a_setting_of_the_wrong_type(sample: Sample, setting: str, value: object) -> None:
    sample.config[setting] = value
    sample.save_adapter()

    refuse(sample, errors.MalformedAdapterError, 5, "adapter_config.json")


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|aa)*", ".*.*.*.*.*.*.*", "(", "[", "a" * 3000])
def test_a_pattern_that_could_run_for_ever_or_is_malformed(sample: Sample, pattern: str) -> None:
    sample.config["alpha_pattern"] = {pattern + "": 1}
    if len(pattern) > 1000:
        sample.config["alpha_pattern"] = {pattern + "|x": 1}
    sample.save_adapter()

    refuse(sample, errors.UnsafePatternError, 5, "pattern")


def test_half_a_pair(sample: Sample) -> None:
    del sample.adapter_tensors[f"{EXPERTS}.lora_B.weight"]
    sample.save_adapter()

    refuse(sample, errors.MalformedAdapterError, 5, "lora_A without lora_B", "model.layers.0.mlp.experts")


def test_halves_that_do_not_fit(sample: Sample) -> None:
    key = f"{EXPERTS}.lora_A.weight"
    sample.adapter_tensors[key] = sample.adapter_tensors[key][:4].clone()
    sample.save_adapter()

    refuse(sample, errors.MalformedAdapterError, 5, "do not fit together", "[4, 5]")


def test_no_pairs(sample: Sample) -> None:
    sample.adapter_tensors.clear()
    sample.save_adapter()

    refuse(sample, errors.MalformedAdapterError, 5, "nothing to merge")


def test_a_pickled_adapter(sample: Sample) -> None:
    (sample.adapter / "adapter_model.safetensors").rename(sample.adapter / "adapter_model.bin")

    refuse(sample, errors.UnsafeFormatError, 5, "adapter_model.bin")


def test_a_rank_that_the_configuration_does_not_give(sample: Sample) -> None:
    sample.config["r"] = 4
    sample.save_adapter()

    refuse(sample, errors.MalformedAdapterError, 5, "has rank 2", "says 4")


def test_a_parameter_that_the_configuration_does_not_target(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(parameters=("down_proj",)))
    sample.config["target_parameters"] = ["mlp.experts.gate_up_proj"]
    sample.save_adapter()

    refuse(sample, errors.MalformedAdapterError, 5, "can only be down_proj", "gate_up_proj")


def test_the_same_parameter_twice(sample: Sample) -> None:
    for half in ("lora_A", "lora_B"):
        sample.adapter_tensors[f"{EXPERTS}.{half}.weight"] = sample.adapter_tensors[
            f"{EXPERTS}.base_layer.{half}.weight"
        ].clone()
    sample.save_adapter()

    refuse(sample, errors.MalformedAdapterError, 5, "two lora pairs cover the same part")


def test_targets_that_no_pair_reaches_are_listed(sample: Sample) -> None:
    for half in ("lora_A", "lora_B"):
        del sample.adapter_tensors[f"base_model.model.model.layers.1.mlp.experts.{half}.weight"]
        del sample.adapter_tensors[f"base_model.model.model.layers.1.self_attn.q_proj.{half}.weight"]
    sample.save_adapter()

    refuse(
        sample, errors.UncoveredTargetsError, 5, "targets 5 tensors",
        "layers.1.mlp.experts.3.down_proj", "layers.1.self_attn.q_proj",
    )  # fmt: skip


def test_a_target_that_is_missing_altogether(sample: Sample) -> None:
    sample.config["target_modules"] = [*sample.config["target_modules"], "kv_a_proj_with_mqa"]  # type: ignore[misc]  # a list
    sample.save_adapter()

    refuse(sample, errors.UncoveredTargetsError, 5, "layers.0.self_attn.kv_a_proj_with_mqa")


# --- an adapter for another base ------------------------------------------------------------------------------------


def test_another_hidden_size(sample: Sample, tmp_path: Path) -> None:
    other = build(tmp_path / "elsewhere", Spec(hidden=8))
    sample.adapter = other.adapter

    refuse(sample, errors.AdapterMismatchError, 5, "model.layers.0.", "lora_A [8, 5]")


def test_another_number_of_experts(sample: Sample, tmp_path: Path) -> None:
    sample.adapter = build(tmp_path / "elsewhere", Spec(experts=3)).adapter

    refuse(sample, errors.AdapterMismatchError, 5, "cannot be shared by the 4 experts")


def test_more_layers(sample: Sample, tmp_path: Path) -> None:
    sample.adapter = build(tmp_path / "elsewhere", Spec(layers=4)).adapter

    refuse(sample, errors.AdapterMismatchError, 5, "model.layers.3.")


def test_keys_that_match_nothing(sample: Sample) -> None:
    sample.adapter_tensors = {
        key.replace("self_attn", "attention"): tensor for key, tensor in sample.adapter_tensors.items()
    }
    sample.save_adapter()

    refuse(sample, errors.AdapterMismatchError, 5, "the base has no model.layers.0.attention.q_proj.weight")


# --- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, "unknown", "0.19.1.dev0"])
def test_a_lone_square_parameter_without_provenance(tmp_path: Path, version: str | None) -> None:
    sample = build(tmp_path, Spec(hidden=6, width=3, parameters=("gate_up_proj",), peft_version=version))

    with pytest.raises(errors.AmbiguousLayoutError) as caught:
        plan_merge(sample.base, sample.adapter)

    assert caught.value.exit_code == 5
    assert "--io-layout" in (caught.value.remedy or "")


def test_shapes_against_version(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(io_layout="swapped", peft_version="0.21.2"))

    refuse(sample, errors.LayoutContradictionError, 5, "are swapped", "writes standard")
    assert plan_merge(sample.base, sample.adapter, io_layout="swapped").io_layout is not None


def test_shapes_against_flag(sample: Sample) -> None:
    refuse(sample, errors.LayoutContradictionError, 5, "--io-layout swapped", "are standard", io_layout="swapped")


def test_shapes_against_each_other(sample: Sample, tmp_path: Path) -> None:
    other = build(tmp_path / "elsewhere", Spec(io_layout="swapped"))
    for key in (key for key in sample.adapter_tensors if "layers.1.mlp.experts.lora" in key):
        sample.adapter_tensors[key] = other.adapter_tensors[key]
    sample.save_adapter()

    refuse(sample, errors.LayoutContradictionError, 5, "mixes io layouts", "layers.0", "layers.1")


@pytest.mark.parametrize("marker", ["expert_major", 3, ["rank_major"]])
def test_an_unknown_marker(sample: Sample, marker: object) -> None:
    sample.config["lora_B_layout"] = marker
    sample.save_adapter()

    refuse(sample, errors.MalformedAdapterError, 5, "lora_B_layout", str(marker))


# --- what changes between planning and merging ----------------------------------------------------------------------


def test_a_shard_that_changed_after_planning(sample: Sample, tmp_path: Path) -> None:
    plan = plan_merge(sample.base, sample.adapter)
    path = shard_with(sample, "lm_head.weight")
    save_file({**load_file(path), "more": torch.zeros(1)}, path)

    with pytest.raises(errors.InputChangedError) as caught:
        merge(plan, tmp_path / "out")

    assert caught.value.exit_code == 5
