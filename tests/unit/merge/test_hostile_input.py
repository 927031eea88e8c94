"""What the fuzz found once, by name: inputs that crashed the engine, held it up, made it swell, or came out as
something unreadable.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from format_samples import HIDDEN, VOCABULARY, Numbers, merged, pair, small_base, write_adapter, write_base
from hostile_cases import peak_kilobytes
from hostile_json import PATTERNS
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_samples import Spec, build
from quantised_samples import four_bit, mxfp4
from safetensors.torch import load_file

from harness.merge import audit, errors, merge, plan_merge
from harness.merge.adapter.bounded_regex import ALL_STEPS, BoundedPattern, Budget, _Walk
from harness.merge.adapter.config import parse_adapter_config
from harness.merge.adapter.keys import classify
from harness.merge.adapter.patterns import ModuleRule, PatternTable
from harness.merge.adapter_tools.convert import convert_adapter
from harness.merge.base.checkpoint import open_checkpoint

Q, EXPERTS, EMBED = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts", "model.embed_tokens"
Tensors = dict[str, torch.Tensor]


def refused(
    tmp_path: Path, base: Tensors, lora: Tensors, error: type[errors.MergeError], said: str, *,
    config: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None, **settings_: object,
) -> None:  # fmt: skip
    """Merge and assert the refusal; nothing is published."""
    write_adapter(tmp_path / "a", lora, **(config or {}))

    with pytest.raises(errors.MergeError) as caught:
        merged(write_base(tmp_path / "b", base, **settings_), tmp_path / "a", tmp_path / "out", **(options or {}))

    assert type(caught.value) is error, caught.value
    assert said in caught.value.message
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


# --- text and nesting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["base/config.json", "adapter/adapter_config.json"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('"\\ud800"', "surrogates"),
        ("[" * 200 + "]" * 200, "nested"),
        ("[" * 600 + "]" * 600, "nested"),
        ("9" * 5000, "digits"),
    ],
)
def test_settings_that_could_not_be_written_again(tmp_path: Path, name: str, value: str, said: str) -> None:
    """A half of a surrogate pair has no UTF-8, and Python writes less nesting than it reads."""
    sample = build(tmp_path)
    path = tmp_path / name
    path.write_text('{"odd": ' + value + "," + path.read_text().removeprefix("{"))

    with pytest.raises(errors.CorruptFileError, match=said):
        plan_merge(sample.base, sample.adapter)


def test_a_number_beyond_all_numbers(tmp_path: Path) -> None:
    """1e999 reads as infinity, which a converted adapter would then have spelled in a way that JSON does not know."""
    sample = build(tmp_path)
    path = sample.adapter / "adapter_config.json"
    path.write_text('{"odd": 1e999,' + path.read_text().removeprefix("{"))

    with pytest.raises(errors.CorruptFileError, match="1e999 is beyond"):
        convert_adapter(sample.adapter, tmp_path / "out", to_io_layout="swapped")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["\ud800", "layers." + "9" * 5000, "x" * 1001, "x." * 64 + "x"])
def test_a_tensor_name_that_nothing_could_hold(tmp_path: Path, name: str) -> None:
    sample = build(tmp_path, Spec(shards=1))
    path = sample.base / "model.safetensors"
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = raw[8 : 8 + length].rstrip().replace(b'"lm_head.weight"', json.dumps(name).encode())
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])

    with pytest.raises(errors.CorruptFileError):
        plan_merge(sample.base, sample.adapter)


def test_a_message_has_an_end() -> None:
    error = errors.InputRefusedError("start " + "x" * 10**6 + " end")

    assert len(error.message) <= errors.LONGEST_MESSAGE
    assert error.message.startswith("start x")
    assert error.message.endswith("x end")


def test_a_key_of_many_originals_is_classified_at_once() -> None:
    start = time.process_time()

    classify("base_model.model.x" + ".original_module" * 20_000 + ".")

    assert time.process_time() - start < 5


# --- patterns -------------------------------------------------------------------------------------------------------

NAME = "model.language_model.layers.17.mlp.experts.113.gate_proj"


@pytest.mark.parametrize(
    "pattern",
    [
        "(?:.|..|...)" * 20 + "!", "(?x)(.* ) *!", "(?:[a-z]|.|\\w)" * 40 + "!", ".*.*.*.*.*!",
        ".?" * 5 + "(.|..)(.|..)(.|..)(.|..)" * 5 + "!",
        "(?=(?:.|..)" + "(?:.|..)" * 60 + "!)", "(?x)(?:) {2000000000}!", "(?i:" + "(?:l.|L.|[a-z]|.)" * 40 + "!)",
    ],
)  # fmt: skip
def test_a_pattern_that_would_run_for_ever_has_an_answer(pattern: str) -> None:
    """None of these ends in an exclamation mark, and Python's own engine would try every way to find out."""
    start = time.process_time()
    with contextlib.suppress(errors.UnsafePatternError):  # an answer too, and as quick
        assert PatternTable({pattern: 1}).value(NAME * 5, 7) == 7

    assert time.process_time() - start < 2


@pytest.mark.parametrize("pattern", PATTERNS)
def test_any_pattern_is_answered_as_python_answers_or_refused(pattern: str) -> None:
    for name in (Q, NAME, "a" * 30, "", "x\n", "q_proj", "a.b"):
        start = time.process_time()
        try:
            value = PatternTable({pattern: 1}).value(name, 7)
        except errors.UnsafePatternError:
            continue

        assert time.process_time() - start < 2
        if len(name) < 8 and len(pattern) < 60:  # what Python can answer, too
            assert (value == 1) == (re.match(rf"(.*\.)?({pattern})$", name) is not None)


LINEARS = [
    f"model.layers.{layer}.mlp.experts.{expert}.{leaf}_proj"
    for layer in range(61)
    for expert in range(256)
    for leaf in ("gate", "up", "down")
]
"""Those of DeepSeek-V3, and more."""
LONG = ["".join(letters) for letters in itertools.islice(itertools.product("abcdef" * 5, repeat=30), 30)]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ({"(?:[a-z]|.|\\w)(.|..)" * 30 + f"{end}!": 1 for end in range(100)}, [name * 30 for name in LONG]),
        ({"(?i:[ -\U0010fffe])" * 90: 1}, LONG),
        ({"(?i:[\u0100-\ufffd])" * 20 + f"{end}": 1 for end in range(100)}, LONG),
        ({"(?i:" + "a" * 1900 + f"{end})": 1 for end in range(2000)}, LONG),
        ({f"(x)y{end}": 1 for end in range(100_000)}, LONG),
        ({"(.|..)" * 3 + "\\b(?m:^)" * 5 + f"{end}!": 1 for end in range(100)}, [name * 30 for name in LONG]),
    ],
    ids=["matching", "one wide set", "wide sets", "long texts", "many", "boundaries"],
)
def test_many_patterns_share_one_budget(patterns: dict[str, float], names: list[str]) -> None:
    """Each match was bounded, and a hundred patterns against a checkpoint's names took half a minute."""
    table = PatternTable(patterns, "rank_pattern", Budget(200_000))
    start = time.process_time()
    with pytest.raises(errors.UnsafePatternError, match=r"take too long to match .* rank_pattern was the last"):
        [table.value(name, 7) for name in names]

    assert time.process_time() - start < 5  # half a second, so that the whole budget is some seconds


def test_settings_share_the_budget_of_their_configuration() -> None:
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 8,
        "rank_pattern": {"(.|..)" * 20 + "!": 1},
        "target_modules": ".*!",
    }
    parsed = parse_adapter_config(config)
    with pytest.raises(errors.UnsafePatternError, match="rank_pattern was the last"):
        [parsed.rank_pattern.value("ab" * 30 + chr(0x4E00 + number), 8) for number in range(10**5)]

    with pytest.raises(errors.UnsafePatternError, match="target_modules was the last"):
        parsed.target_modules.covers("model.norm")


def test_names_in_lists_are_looked_up() -> None:
    rule = ModuleRule([f"n{number}" for number in range(40_000)] + ["experts.7.up_proj"])
    start = time.process_time()
    covered = [name for name in LINEARS if rule.covers(name)]

    assert time.process_time() - start < 5
    assert covered == [f"model.layers.{layer}.mlp.experts.7.up_proj" for layer in range(61)]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        (r".*\.mlp\.experts\.\d+\.(gate_proj|up_proj|down_proj)", 61 * 256 * 3),
        (r"model\.layers\.(1[0-9]|2[0-9]|3[5-9])\.mlp\.experts\.\d+\.(gate|up|down)_proj", 25 * 256 * 3),
        # What Unsloth writes.
        (
            r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp\.experts\.\d+)\.(?:(?:q_proj|up_proj)))",
            61 * 256,
        ),
    ],
)
def test_patterns_of_real_adapters_fit_the_largest_model(pattern: str, count: int) -> None:
    rule = ModuleRule(pattern)

    assert sum(map(rule.covers, LINEARS)) == count


def test_ranks_by_depth_and_leaf_take_a_third_of_what_a_configuration_may() -> None:
    """Patterns that tell layers apart, so that few names are one name to them, in both settings that have patterns."""
    depths = ("[0-9]|1[0-9]", "2[0-9]|3[0-9]", "4[0-9]", "5[0-9]|60")
    ends = [(depth, leaf) for depth in depths for leaf in ("gate", "up", "down")]
    patterns = {
        rf"model\.layers\.({depth})\.mlp\.experts\.\d+\.{leaf}_proj": number
        for number, (depth, leaf) in enumerate(ends, start=1)
    }
    budget = Budget(ALL_STEPS // 3)
    tables = [PatternTable(patterns, setting, budget) for setting in ("rank_pattern", "alpha_pattern")]
    found = [[table.value(name, 0) for name in LINEARS] for table in tables]

    assert found[0] == found[1]
    assert [found[0].count(number) for number in range(1, 13)] == [20 * 256] * 6 + [10 * 256] * 3 + [11 * 256] * 3


def test_a_rank_of_its_own_for_every_module_of_the_largest_model() -> None:
    """Written out, as rank redistribution does, or with a pattern for each layer."""
    named = PatternTable({name: number for number, name in enumerate(LINEARS, start=1)})
    escaped = PatternTable({f"^{re.escape(name)}": number for number, name in enumerate(LINEARS, start=1)})
    layered = PatternTable({rf"layers\.{layer}\.mlp\.experts\.\d+\.up_proj": layer + 1 for layer in range(61)})

    assert [named.value(name, 0) for name in LINEARS] == list(range(1, len(LINEARS) + 1))
    assert [escaped.value(name, 0) for name in LINEARS] == list(range(1, len(LINEARS) + 1))
    assert [layered.value(name, 0) for name in LINEARS[1::3]] == [layer + 1 for layer in range(61) for _ in range(256)]


ATOMS = st.sampled_from([
    "a", "b", "ab", ".", r"\d", r"\w", r"\W", r"\s", "[ab]", "[^a]", r"[a-c0-9_]", r"\.", "_", "^", "$", r"\b", r"\B",
    r"\Z", r"\A", "(?=a)", "(?!b)",
    "(?<=a)", "(?<!b)", "1", "[12]", "[^2-4]", "(?:a|b)", "(a|ab|b)", "(?i:A)", "(?s:.)", r"[^\d]", r"\n", "(?m:^a$)",
    r"(?a:\w)", "(?:a|)", "()",
])  # fmt: skip
TIMES = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{0,2}", "{1,}", "{1,3}", "*?", "+?", "??"])


def _patterns(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    grouped = st.builds(lambda parts: f"({'|'.join(parts)})", st.lists(inner, min_size=1, max_size=3))
    part = st.builds(lambda text, times: text + times, st.one_of(ATOMS, grouped), TIMES)
    return st.builds("".join, st.lists(part, max_size=3))


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(st.builds(lambda a, t: a + t, ATOMS, TIMES), _patterns, max_leaves=6),
    st.text("ab_.123 A\né", max_size=6),
)
def test_sets_of_positions_agree_with_python(pattern: str, name: str) -> None:
    """Every construct, nested anyhow, on names short enough for an engine that backtracks."""
    try:
        expected = re.compile(pattern)
    except re.error:
        return
    bounded = BoundedPattern(pattern)
    places = _Walk(bounded, name).run()

    assert (places != 0) == (expected.match(name) is not None) == bounded.match(name)
    assert bool(places >> len(name)) == (expected.fullmatch(name) is not None) == bounded.fullmatch(name)


@pytest.mark.parametrize("pattern", ["(a)\\1", "(?>a*)a", "a*+a", "(x)?(?(1)a|b)"])
def test_what_sets_cannot_follow_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(errors.UnsafePatternError, match="uses "):
        BoundedPattern(pattern)


# --- quantised bases ------------------------------------------------------------------------------------------------


def four_bit_with(**changes: object) -> Tensors:
    """A nested 4-bit q_proj whose quant_state says something else."""
    tensors, _ = four_bit(f"{Q}.weight", (7, HIDDEN), nested=True)
    key = f"{Q}.weight.quant_state.bitsandbytes__nf4"
    state = {**json.loads(bytes(tensors[key].tolist())), **changes}
    return {**tensors, key: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"nested_offset": 10**400}, errors.UnsupportedBaseError, "offset"),
        ({"nested_offset": 1e39}, errors.UnsupportedBaseError, "offset"),
        ({"shape": [1] * 100 + [7, HIDDEN]}, errors.InconsistentCheckpointError, "shape"),
        ({"shape": [2**30] * 5000}, errors.InconsistentCheckpointError, "shape"),
    ],
)  # fmt: skip
def test_a_quant_state_beyond_all_bounds(
    tmp_path: Path, changes: dict[str, object], error: type[errors.MergeError], said: str
) -> None:
    refused(tmp_path, four_bit_with(**changes), pair(Numbers(), Q, 7, HIDDEN), error, said)


def test_a_block_of_two_billion_values_takes_no_memory(tmp_path: Path) -> None:
    """One block holds everything either way, so the values are those of any block size from 42 on."""
    numbers = Numbers()
    write_adapter(tmp_path / "a", pair(numbers, Q, 7, HIDDEN))
    found = []
    for blocksize in (64, 2**31 - 1):
        base = write_base(tmp_path / f"b{blocksize}", four_bit_with(blocksize=blocksize))
        before = peak_kilobytes(reset=True)
        found.append(merged(base, tmp_path / "a", tmp_path / f"out{blocksize}")[0][f"{Q}.weight"])

        assert peak_kilobytes() - before < 100_000
    assert torch.equal(*found)


@pytest.mark.parametrize("block", [[8, 6], [10**9, 10**9], [2**63, 10**40]])
def test_an_fp8_block_larger_than_the_matrix_is_the_matrix(tmp_path: Path, block: list[int]) -> None:
    scales = torch.tensor([2.0, 4.0]).reshape(2, 1, 1)
    ones = torch.full((2, 8, HIDDEN), 0x38, dtype=torch.uint8).view(torch.float8_e4m3fn)
    base = {f"{EXPERTS}.gate_up_proj": ones, f"{EXPERTS}.gate_up_proj_scale_inv": scales}
    lora = {key: torch.zeros_like(value) for key, value in pair(Numbers(), EXPERTS, 8, HIDDEN, 4).items()}
    write_adapter(tmp_path / "a", lora, target_modules=None, target_parameters=["experts.gate_up_proj"])
    write_base(
        tmp_path / "b", base, num_experts=2, quantization_config={"quant_method": "fp8", "weight_block_size": block}
    )

    before = peak_kilobytes(reset=True)
    found, _ = merged(tmp_path / "b", tmp_path / "a", tmp_path / "out")

    assert peak_kilobytes() - before < 100_000
    assert torch.equal(found[f"{EXPERTS}.gate_up_proj"], scales.expand(2, 8, HIDDEN).to(torch.float32))


def test_a_dtype_that_is_no_text_counts_as_none(tmp_path: Path) -> None:
    """A list cannot be looked up; bfloat16 is what libraries load a model in that names nothing."""
    tensors, _ = four_bit(f"{Q}.weight", (7, HIDDEN))
    write_adapter(tmp_path / "a", pair(Numbers(), Q, 7, HIDDEN))

    found, _ = merged(write_base(tmp_path / "b", tensors, torch_dtype=["float32"]), tmp_path / "a", tmp_path / "out")

    assert found[f"{Q}.weight"].dtype == torch.bfloat16


def test_a_weight_that_is_stored_plain_and_quantised(tmp_path: Path) -> None:
    blocks, scales, _ = mxfp4(2, 32, 12)
    key = f"{EXPERTS}.gate_up_proj"
    base = {f"{key}_blocks": blocks, f"{key}_scales": scales, key: torch.zeros(2, 32, 12)}

    refused(
        tmp_path,
        base,
        pair(Numbers(), EXPERTS, 12, 32, 4),
        errors.InconsistentCheckpointError,
        "twice",
        model_type="gpt_oss",
    )


# --- bases and adapters that do not belong together -----------------------------------------------------------------


def test_a_parameter_that_this_base_lacks(tmp_path: Path) -> None:
    """Granitemoe names the parameter in the module's path, and the base has only the other one."""
    numbers, stem = Numbers(), "model.layers.0.block_sparse_moe"
    base = {f"{stem}.output_linear.weight": numbers(2, 6, 4)}
    lora = pair(numbers, f"{stem}.input_linear", 8, 6, 4)
    config = {"target_modules": None, "target_parameters": ["input_linear.weight"]}

    refused(
        tmp_path,
        base,
        lora,
        errors.AdapterMismatchError,
        "fits none",
        config=config,
        model_type="granitemoe",
        num_local_experts=2,
    )


@pytest.mark.parametrize(
    ("bias", "error", "said"),
    [
        (torch.zeros(3), errors.AdapterMismatchError, "[3]"), (torch.zeros(9), errors.AdapterMismatchError, "[9]"),
        (torch.zeros(7, 1), errors.AdapterMismatchError, "[7, 1]"),
        (torch.zeros(7, dtype=torch.int64), errors.UnsupportedBaseError, "I64"),
    ],
)  # fmt: skip
def test_a_bias_below_that_is_no_match(
    tmp_path: Path, bias: torch.Tensor, error: type[errors.MergeError], said: str
) -> None:
    """Nine elements would have been read out of an adapter's seven, and what lies behind them."""
    numbers = Numbers()
    lora = {**pair(numbers, Q, 7, HIDDEN), f"{Q}.lora_B.bias": numbers(7)}

    refused(tmp_path, {**small_base(numbers), f"{Q}.bias": bias}, lora, error, said, config={"lora_bias": True})


@pytest.mark.parametrize(
    ("head", "error", "said"),
    [
        (torch.zeros(3, HIDDEN), errors.InconsistentCheckpointError, "ties lm_head.weight [3, 6]"),
        (torch.zeros(VOCABULARY, HIDDEN, dtype=torch.int32), errors.UnsupportedBaseError, "I32"),
    ],
)
def test_a_tied_head_that_cannot_be_the_embedding(
    tmp_path: Path, head: torch.Tensor, error: type[errors.MergeError], said: str
) -> None:
    """Trained tokens go to both; the ninth row of three would be in the next tensor."""
    numbers = Numbers()
    lora = {f"{EMBED}.token_adapter.trainable_tokens_delta": numbers(1, HIDDEN)}
    config = {"trainable_token_indices": {"embed_tokens": [8]}, "target_modules": []}
    base = {**small_base(numbers, head=False), "lm_head.weight": head}

    refused(tmp_path, base, lora, error, said, config=config, tie_word_embeddings=True)


def test_a_head_without_dimensions_beside_a_resized_embedding(tmp_path: Path) -> None:
    numbers = Numbers()
    base = {**small_base(numbers, head=False), "lm_head.weight": torch.tensor(1.0)}
    write_adapter(tmp_path / "a", {**pair(numbers, Q, 7, HIDDEN), f"{EMBED}.weight": numbers(VOCABULARY + 2, HIDDEN)})

    found, _ = merged(write_base(tmp_path / "b", base), tmp_path / "a", tmp_path / "out")

    assert found[f"{EMBED}.weight"].shape == (VOCABULARY + 2, HIDDEN)
    assert found["lm_head.weight"] == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_that_is_not_finite_below_a_whole_tensor(tmp_path: Path, value: float) -> None:
    """The result would be the adapter's, and the norm of the change no number that JSON has."""
    numbers = Numbers()
    base = small_base(numbers)
    base["lm_head.weight"][2, 1] = value
    lora = {**pair(numbers, Q, 7, HIDDEN), "lm_head.weight": numbers(VOCABULARY, HIDDEN)}

    refused(
        tmp_path,
        base,
        lora,
        errors.NonFiniteError,
        "lm_head.weight: the base holds NaN",
        config={"modules_to_save": ["lm_head"]},
    )


@pytest.mark.parametrize("weight", [10**400, float("nan"), 1e308], ids=["huge", "nan", "overflowing"])
def test_a_weight_that_makes_no_finite_scale(tmp_path: Path, weight: float) -> None:
    numbers = Numbers()
    config = {"lora_alpha": 2**31}

    refused(
        tmp_path,
        small_base(numbers),
        pair(numbers, Q, 7, HIDDEN),
        errors.UsageError,
        "finite",
        config=config,
        options={"weights": [weight]},
    )


# --- counts out of headers ------------------------------------------------------------------------------------------


def sparse(path: Path, key: str, shape: tuple[int, ...]) -> None:
    """Add a half-precision tensor to a file, as a hole: its size is real, its blocks are not."""
    tensors = load_file(path)
    header: dict[str, object] = {}
    position, body = 0, b""
    for name, tensor in tensors.items():
        data = tensor.float().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [position, position + len(data)]}
        position, body = position + len(data), body + data
    size = 2
    for side in shape:
        size *= side
    header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [position, position + size]}
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    os.truncate(path, path.stat().st_size + size)


def test_a_hundred_million_experts_are_not_listed(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(disk="fused", shards=1, layers=1))
    (tmp_path / "base" / "config.json").write_text('{"model_type": "made_up", "num_hidden_layers": 3}')
    sparse(tmp_path / "base" / "model.safetensors", "model.layers.2.mlp.experts.down_proj", (10**8, 6, 5))
    lora = f"base_model.model.{EXPERTS.replace('0', '2')}"
    sample.adapter_tensors |= {f"{lora}.lora_A.weight": torch.zeros(2, 5), f"{lora}.lora_B.weight": torch.zeros(6, 2)}
    sample.save_adapter()
    before = peak_kilobytes(reset=True)

    with pytest.raises(errors.UnsupportedBaseError, match="100000000 experts"):
        plan_merge(sample.base, sample.adapter)

    assert peak_kilobytes() - before < 100_000


def test_the_number_in_a_name_is_not_a_count(tmp_path: Path) -> None:
    """Expert 999999999 alone: the experts that are missing are not listed one by one."""
    numbers = Numbers()
    write_adapter(tmp_path / "a", pair(numbers, f"{EXPERTS}.999999999.down_proj", 6, 5))
    before = peak_kilobytes(reset=True)

    with pytest.raises(errors.UnsupportedAdapterError, match=r"experts \[0, 1, 2, 3, 4, 5, 6, 7\] have no LoRA"):
        convert_adapter(tmp_path / "a", tmp_path / "out", to_experts="fused")

    assert peak_kilobytes() - before < 100_000
    assert not (tmp_path / "out").exists()


def test_a_pair_whose_output_has_no_halves_is_not_taken_apart(tmp_path: Path) -> None:
    """Nine rows of gate and up: the last would be lost."""
    write_adapter(tmp_path / "a", pair(Numbers(), EXPERTS, 9, 6, 4), target_parameters=["experts.gate_up_proj"])

    with pytest.raises(errors.UnsupportedAdapterError, match="9 output features"):
        convert_adapter(tmp_path / "a", tmp_path / "out", to_experts="per-expert")

    assert not (tmp_path / "out").exists()


# --- directories ----------------------------------------------------------------------------------------------------


def test_directories_within_directories(tmp_path: Path) -> None:
    sample = build(tmp_path)
    folder = str(sample.base)
    for _ in range(40):
        folder += "/d"
        Path(folder).mkdir()

    with pytest.raises(errors.UnsafePathError, match="nested more than"):
        open_checkpoint(sample.base)


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    sample = build(tmp_path)
    Path(os.fsdecode(os.fsencode(sample.base) + b"/weights\xff.bin")).write_bytes(b"")

    with pytest.raises(errors.UnsafePathError, match="not UTF-8"):
        merge(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["pipe", "endless", "nested", "nothing"])
def test_settings_of_a_merged_tokenizer_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    """The audit only asks whether they hold a chat template.

    It neither waits for a pipe nor reads a device to its end.
    """
    sample = build(tmp_path)
    merge(plan_merge(sample.base, sample.adapter), tmp_path / "merged")
    (tmp_path / "merged" / "chat_template.jinja").unlink()
    place = tmp_path / "merged" / "tokenizer_config.json"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "endless":
        place.symlink_to("/dev/zero")
    elif kind == "nested":
        place.write_text("[" * 100_000)

    report = audit(sample.base, sample.adapter, tmp_path / "merged")

    assert report.missing_files == ("the chat template",)
