"""What an adapter can say beside plain LoRA: each feature against values from its definition in float64, and broken in
the ways that happen.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from format_samples import (
    HIDDEN,
    VOCABULARY,
    Numbers,
    close,
    config_of,
    delta,
    exact,
    merged,
    pair,
    small_base,
    write_adapter,
    write_base,
)
from safetensors.torch import load_file

from harness.merge import errors, plan_merge

Q = "model.layers.0.self_attn.q_proj"
EMBED, HEAD = "model.embed_tokens", "lm_head"


@pytest.fixture
def numbers() -> Numbers:
    return Numbers()


def same_but(found: dict[str, torch.Tensor], base: dict[str, torch.Tensor], *changed: str) -> None:
    """Every tensor that is not named is the base's, bit for bit."""
    for key, tensor in base.items():
        if key not in changed:
            assert torch.equal(found[key], tensor), key


def test_dora_scales_each_output_feature_to_its_magnitude(tmp_path: Path, numbers: Numbers) -> None:
    base, lora = small_base(numbers), pair(numbers, Q, 7, HIDDEN)
    lora[f"{Q}.lora_magnitude_vector"] = numbers(7).abs() + 0.5
    write_adapter(tmp_path / "a", lora, use_dora=True)

    found, report = merged(write_base(tmp_path / "b", base), tmp_path / "a", tmp_path / "out")

    summed = exact(base[f"{Q}.weight"]) + delta(lora, Q)
    expected = exact(lora[f"{Q}.lora_magnitude_vector"])[:, None] * summed / np.sqrt((summed**2).sum(1))[:, None]
    assert close(found[f"{Q}.weight"], expected)
    assert np.array_equal(found[f"{Q}.weight"].numpy(), expected.astype(np.float32)), "rounded once"
    assert report.attempted == report.applied == 1
    same_but(found, base, f"{Q}.weight")


def test_dora_on_a_conv1d_scales_columns(tmp_path: Path, numbers: Numbers) -> None:
    """gpt2 stores (in, out), published without ``transformer.``; c_proj is square, so only the family tells."""
    base = {
        "h.0.attn.c_attn.weight": numbers(6, 9),
        "h.0.attn.c_proj.weight": numbers(6, 6),
        "wte.weight": numbers(8, 6),
    }
    lora: dict[str, torch.Tensor] = {}
    for leaf, out in (("c_attn", 9), ("c_proj", 6)):
        lora |= pair(numbers, f"transformer.h.0.attn.{leaf}", out, 6)
        lora[f"transformer.h.0.attn.{leaf}.lora_magnitude_vector"] = numbers(out).abs() + 0.5
    write_adapter(tmp_path / "a", lora, use_dora=True, fan_in_fan_out=True, target_modules=["c_attn", "c_proj"])
    write_base(tmp_path / "b", base, model_type="gpt2", tie_word_embeddings=True)

    found, _ = merged(tmp_path / "b", tmp_path / "a", tmp_path / "out")

    for leaf in ("c_attn", "c_proj"):
        module = f"transformer.h.0.attn.{leaf}"
        summed = exact(base[f"h.0.attn.{leaf}.weight"]) + delta(lora, module).T
        factor = exact(lora[f"{module}.lora_magnitude_vector"]) / np.sqrt((summed**2).sum(0))
        assert close(found[f"h.0.attn.{leaf}.weight"], summed * factor)


def test_a_square_conv1d_of_an_unknown_model_type_is_refused(tmp_path: Path, numbers: Numbers) -> None:
    base = {f"{Q}.weight": numbers(6, 6)}
    write_adapter(tmp_path / "a", pair(numbers, Q, 6, 6), fan_in_fan_out=True)

    with pytest.raises(errors.UnsupportedAdapterError, match="nothing says whether"):
        plan_merge(write_base(tmp_path / "b", base), tmp_path / "a")


def test_a_bias_on_lora_b_is_scaled_and_added(tmp_path: Path, numbers: Numbers) -> None:
    base, lora = small_base(numbers, bias=True), pair(numbers, Q, 7, HIDDEN)
    lora[f"{Q}.lora_B.bias"] = numbers(7)
    write_adapter(tmp_path / "a", lora, lora_bias=True)

    found, report = merged(write_base(tmp_path / "b", base), tmp_path / "a", tmp_path / "out")

    assert close(found[f"{Q}.bias"], exact(base[f"{Q}.bias"]) + 1.5 * exact(lora[f"{Q}.lora_B.bias"]))
    assert close(found[f"{Q}.weight"], exact(base[f"{Q}.weight"]) + delta(lora, Q))
    assert report.attempted == 2


def test_a_bias_on_lora_b_without_a_bias_below_is_refused_as_peft_does(tmp_path: Path, numbers: Numbers) -> None:
    lora = pair(numbers, Q, 7, HIDDEN)
    lora[f"{Q}.lora_B.bias"] = numbers(7)
    write_adapter(tmp_path / "a", lora, lora_bias=True)

    with pytest.raises(errors.UnsupportedAdapterError, match="because the base layer has no bias"):
        plan_merge(write_base(tmp_path / "b", small_base(numbers)), tmp_path / "a")


@pytest.mark.parametrize(
    ("bias", "key"), [("all", f"{Q}.bias"), ("lora_only", f"{Q}.base_layer.bias"), ("all", f"{Q}.base_layer.bias")]
)
def test_trained_biases_replace_the_bases(tmp_path: Path, numbers: Numbers, bias: str, key: str) -> None:
    base, lora = small_base(numbers, bias=True), pair(numbers, Q, 7, HIDDEN)
    lora[key] = numbers(7)
    write_adapter(tmp_path / "a", lora, bias=bias)

    found, _ = merged(write_base(tmp_path / "b", base), tmp_path / "a", tmp_path / "out")

    assert torch.equal(found[f"{Q}.bias"], lora[key])
    same_but(found, base, f"{Q}.bias", f"{Q}.weight")


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_peft_did_not_save_are_an_error(tmp_path: Path, numbers: Numbers, bias: str) -> None:
    write_adapter(tmp_path / "a", pair(numbers, Q, 7, HIDDEN), bias=bias)

    with pytest.raises(errors.UncoveredTargetsError, match=r"q_proj\.bias"):
        plan_merge(write_base(tmp_path / "b", small_base(numbers, bias=True)), tmp_path / "a")


def test_fully_trained_modules_replace_the_bases(tmp_path: Path, numbers: Numbers) -> None:
    base, lora = small_base(numbers), pair(numbers, Q, 7, HIDDEN)
    norm = "model.layers.0.input_layernorm.weight"
    lora |= {norm: numbers(HIDDEN), f"{HEAD}.weight": numbers(VOCABULARY, HIDDEN)}
    write_adapter(tmp_path / "a", lora, modules_to_save=["input_layernorm", "lm_head"])

    found, report = merged(write_base(tmp_path / "b", base), tmp_path / "a", tmp_path / "out")

    assert torch.equal(found[norm], lora[norm])
    assert torch.equal(found[f"{HEAD}.weight"], lora[f"{HEAD}.weight"])
    assert report.applied == report.attempted == 3
    same_but(found, base, norm, f"{HEAD}.weight", f"{Q}.weight")


def test_a_whole_tensor_that_was_not_trained_counts_as_no_delta_and_keeps_the_bytes(
    tmp_path: Path, numbers: Numbers
) -> None:
    base, lora = small_base(numbers), pair(numbers, Q, 7, HIDDEN)
    lora[f"{HEAD}.weight"] = base[f"{HEAD}.weight"].clone()
    write_adapter(tmp_path / "a", lora, modules_to_save=["lm_head"])

    found, report = merged(write_base(tmp_path / "b", base), tmp_path / "a", tmp_path / "out")

    assert (report.applied, report.zero_delta) == (1, 1)
    same_but(found, base, f"{Q}.weight")


def test_a_whole_fused_tensor_replaces_experts_that_are_stored_one_by_one(tmp_path: Path, numbers: Numbers) -> None:
    stem = "model.layers.0.block_sparse_moe"
    base = {
        f"{stem}.experts.{e}.{leaf}.weight": numbers(*shape)
        for e in range(3)
        for leaf, shape in (("w1", (4, 6)), ("w3", (4, 6)), ("w2", (6, 4)))
    }
    base |= {f"{stem}.gate.weight": numbers(3, 6), f"{Q}.weight": numbers(7, 6)}
    whole = {
        "model.layers.0.mlp.experts.gate_up_proj": numbers(3, 8, 6),
        "model.layers.0.mlp.experts.down_proj": numbers(3, 6, 4),
    }
    whole["model.layers.0.mlp.gate.weight"] = numbers(3, 6)
    write_adapter(tmp_path / "a", {**whole, **pair(numbers, Q, 7, 6)}, modules_to_save=["mlp"])
    write_base(tmp_path / "b", base, model_type="mixtral", num_local_experts=3)

    found, _ = merged(tmp_path / "b", tmp_path / "a", tmp_path / "out")

    for e in range(3):
        gate_up = whole["model.layers.0.mlp.experts.gate_up_proj"][e]
        assert torch.equal(found[f"{stem}.experts.{e}.w1.weight"], gate_up[:4])
        assert torch.equal(found[f"{stem}.experts.{e}.w3.weight"], gate_up[4:])
        assert torch.equal(found[f"{stem}.experts.{e}.w2.weight"], whole["model.layers.0.mlp.experts.down_proj"][e])
    assert torch.equal(found[f"{stem}.gate.weight"], whole["model.layers.0.mlp.gate.weight"])


def test_lora_on_an_embedding(tmp_path: Path, numbers: Numbers) -> None:
    """Weight (V, H) gets (B A)^T with lora_embedding_A (r, V) and lora_embedding_B (H, r).

    A LoRA on the head beside it.
    """
    base, lora = small_base(numbers), pair(numbers, HEAD, VOCABULARY, HIDDEN)
    lora |= {f"{EMBED}.lora_embedding_A": numbers(2, VOCABULARY), f"{EMBED}.lora_embedding_B": numbers(HIDDEN, 2)}
    write_adapter(tmp_path / "a", lora, target_modules=["embed_tokens", "lm_head"])

    found, _ = merged(write_base(tmp_path / "b", base), tmp_path / "a", tmp_path / "out")

    product = exact(lora[f"{EMBED}.lora_embedding_B"]) @ exact(lora[f"{EMBED}.lora_embedding_A"])
    assert close(found[f"{EMBED}.weight"], exact(base[f"{EMBED}.weight"]) + 1.5 * product.T)
    assert close(found[f"{HEAD}.weight"], exact(base[f"{HEAD}.weight"]) + delta(lora, HEAD))
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is False


def test_trained_tokens_replace_their_rows_in_the_order_of_the_configuration(tmp_path: Path, numbers: Numbers) -> None:
    base, rows = small_base(numbers), numbers(3, HIDDEN)
    lora = {**pair(numbers, Q, 7, HIDDEN), f"{EMBED}.token_adapter.trainable_tokens_delta": rows}
    write_adapter(tmp_path / "a", lora, trainable_token_indices=[7, 0, 10])

    found, report = merged(write_base(tmp_path / "b", base), tmp_path / "a", tmp_path / "out")

    expected = base[f"{EMBED}.weight"].clone()
    expected[7], expected[0], expected[10] = rows[0], rows[1], rows[2]
    assert torch.equal(found[f"{EMBED}.weight"], expected)
    assert report.attempted == 2
    same_but(found, base, f"{EMBED}.weight", f"{Q}.weight")


def test_a_token_that_the_base_does_not_have(tmp_path: Path, numbers: Numbers) -> None:
    write_adapter(
        tmp_path / "a",
        {f"{EMBED}.token_adapter.trainable_tokens_delta": numbers(1, HIDDEN)},
        trainable_token_indices=[VOCABULARY],
    )

    with pytest.raises(errors.AdapterMismatchError, match="highest number 11"):
        plan_merge(write_base(tmp_path / "b", small_base(numbers)), tmp_path / "a")


# --- vocabularies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [VOCABULARY + 3, VOCABULARY - 4])
def test_a_resized_vocabulary_is_written_and_config_says_so(tmp_path: Path, numbers: Numbers, rows: int) -> None:
    base, lora = small_base(numbers), pair(numbers, Q, 7, HIDDEN)
    lora |= {f"{EMBED}.weight": numbers(rows, HIDDEN), f"{HEAD}.weight": numbers(rows, HIDDEN)}
    write_adapter(tmp_path / "a", lora)
    write_base(tmp_path / "b", base, vocab_size=VOCABULARY)

    found, _ = merged(tmp_path / "b", tmp_path / "a", tmp_path / "out")

    assert torch.equal(found[f"{EMBED}.weight"], lora[f"{EMBED}.weight"])
    assert torch.equal(found[f"{HEAD}.weight"], lora[f"{HEAD}.weight"])
    assert config_of(tmp_path / "out")["vocab_size"] == rows
    same_but(found, base, f"{EMBED}.weight", f"{HEAD}.weight", f"{Q}.weight")


def test_a_resized_vocabulary_with_lora_and_tokens_on_top(tmp_path: Path, numbers: Numbers) -> None:
    """The resized head below a LoRA, the resized embedding below trained tokens, one of them new.

    Spare copies are ignored.
    """
    base, rows = small_base(numbers), VOCABULARY + 2
    lora = pair(numbers, HEAD, rows, HIDDEN)
    below, tokens = numbers(rows, HIDDEN), numbers(2, HIDDEN)
    lora |= {
        f"{HEAD}.base_layer.weight": numbers(rows, HIDDEN),
        f"{EMBED}.token_adapter.base_layer.weight": below,
        f"{EMBED}.token_adapter.trainable_tokens_delta": tokens,
        f"{EMBED}.original_module.weight": numbers(rows, HIDDEN),
    }
    write_adapter(tmp_path / "a", lora, target_modules=["lm_head"], trainable_token_indices=[VOCABULARY + 1, 4])
    write_base(tmp_path / "b", base, text_config={"vocab_size": VOCABULARY})

    found, _ = merged(tmp_path / "b", tmp_path / "a", tmp_path / "out")

    expected = below.clone()
    expected[VOCABULARY + 1], expected[4] = tokens
    assert torch.equal(found[f"{EMBED}.weight"], expected)
    assert close(found[f"{HEAD}.weight"], exact(lora[f"{HEAD}.base_layer.weight"]) + delta(lora, HEAD))
    assert config_of(tmp_path / "out")["text_config"] == {"vocab_size": rows}


def test_a_vocabulary_resized_on_one_side_only_is_refused(tmp_path: Path, numbers: Numbers) -> None:
    write_adapter(tmp_path / "a", {**pair(numbers, Q, 7, HIDDEN), f"{EMBED}.weight": numbers(VOCABULARY + 1, HIDDEN)})

    with pytest.raises(errors.MalformedAdapterError, match="resized, but not everywhere"):
        plan_merge(write_base(tmp_path / "b", small_base(numbers)), tmp_path / "a")


@pytest.mark.parametrize("said", [True, None])
def test_a_tied_head_that_changes_is_untied(tmp_path: Path, numbers: Numbers, *, said: bool | None) -> None:
    """The embedding stays as it was; whether config.json says that they are tied or leaves it to the missing tensor."""
    base, lora = small_base(numbers, head=False), pair(numbers, HEAD, VOCABULARY, HIDDEN)
    write_adapter(tmp_path / "a", lora, target_modules=["lm_head"])
    write_base(tmp_path / "b", base, tie_word_embeddings=said)
    if said is None:
        config = config_of(tmp_path / "b")
        del config["tie_word_embeddings"]
        (tmp_path / "b" / "config.json").write_text(json.dumps(config))

    found, report = merged(tmp_path / "b", tmp_path / "a", tmp_path / "out")

    assert close(found[f"{HEAD}.weight"], exact(base[f"{EMBED}.weight"]) + delta(lora, HEAD))
    assert found.keys() == base.keys() | {f"{HEAD}.weight"}
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is False
    assert any("tied" in note for note in report.notes)
    same_but(found, base)


@pytest.mark.parametrize("whole", [True, False])
def test_a_tied_embedding_that_changes_leaves_the_head_as_it_was(
    tmp_path: Path, numbers: Numbers, *, whole: bool
) -> None:
    base = small_base(numbers, head=False)
    if whole:
        lora, config = (
            {f"{EMBED}.weight": numbers(VOCABULARY, HIDDEN), **pair(numbers, Q, 7, HIDDEN)},
            {"modules_to_save": ["embed_tokens"]},
        )
        expected = exact(lora[f"{EMBED}.weight"])
    else:
        lora = {f"{EMBED}.lora_embedding_A": numbers(2, VOCABULARY), f"{EMBED}.lora_embedding_B": numbers(HIDDEN, 2)}
        config = {"target_modules": ["embed_tokens"]}
        product = exact(lora[f"{EMBED}.lora_embedding_B"]) @ exact(lora[f"{EMBED}.lora_embedding_A"])
        expected = exact(base[f"{EMBED}.weight"]) + 1.5 * product.T
    write_adapter(tmp_path / "a", lora, **config)
    write_base(tmp_path / "b", base, tie_word_embeddings=True)

    found, report = merged(tmp_path / "b", tmp_path / "a", tmp_path / "out")

    assert close(found[f"{EMBED}.weight"], expected)
    assert torch.equal(found[f"{HEAD}.weight"], base[f"{EMBED}.weight"])
    assert report.attempted == (2 if whole else 1)
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is False


@pytest.mark.parametrize("stored", [False, True])
def test_trained_tokens_of_tied_embeddings_stay_tied(tmp_path: Path, numbers: Numbers, *, stored: bool) -> None:
    """PEFT ties them; a checkpoint that stores the head all the same gets them in both."""
    base, rows = small_base(numbers, head=False), numbers(1, HIDDEN)
    if stored:
        base[f"{HEAD}.weight"] = base[f"{EMBED}.weight"].clone()
    write_adapter(
        tmp_path / "a",
        {f"{EMBED}.token_adapter.trainable_tokens_delta": rows},
        trainable_token_indices=[3],
        target_modules=None,
    )
    write_base(tmp_path / "b", base, tie_word_embeddings=True)

    found, _ = merged(tmp_path / "b", tmp_path / "a", tmp_path / "out")

    assert found.keys() == base.keys()
    for key in [key for key in found if key in {f"{EMBED}.weight", f"{HEAD}.weight"}]:
        assert torch.equal(found[key][3], rows[0])
        assert torch.equal(found[key][:3], base[key][:3])
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is True


def test_an_untied_head_appears_in_the_index(tmp_path: Path, numbers: Numbers) -> None:
    base, lora = small_base(numbers, head=False), pair(numbers, HEAD, VOCABULARY, HIDDEN)
    write_adapter(tmp_path / "a", lora, target_modules=["lm_head"])
    folder = write_base(tmp_path / "b", base, tie_word_embeddings=True)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    places = dict.fromkeys(base, "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
    )

    merged(folder, tmp_path / "a", tmp_path / "out")

    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    found = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    assert index["weight_map"] == dict.fromkeys(found, "model-00001-of-00001.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.numel() * 4 for tensor in found.values())


# --- several adapters, and their names ------------------------------------------------------------------------------


def test_several_adapters_add_up_by_their_weights(tmp_path: Path, numbers: Numbers) -> None:
    base = small_base(numbers, bias=True)
    first, second = pair(numbers, Q, 7, HIDDEN), pair(numbers, Q, 7, HIDDEN, rank=3)
    for lora in (first, second):
        lora[f"{Q}.lora_B.bias"] = numbers(7)
    second |= pair(numbers, HEAD, VOCABULARY, HIDDEN, rank=3)
    second[f"{HEAD}.lora_B.bias"] = numbers(VOCABULARY)
    base[f"{HEAD}.bias"] = numbers(VOCABULARY)
    one = write_adapter(tmp_path / "one", first, lora_bias=True)
    two = write_adapter(
        tmp_path / "two", second, lora_bias=True, r=3, lora_alpha=6, target_modules=["q_proj", "lm_head"]
    )

    found, report = merged(write_base(tmp_path / "b", base), [one, two], tmp_path / "out", weights=[0.5, -2.0])

    weight = exact(base[f"{Q}.weight"]) + 0.5 * delta(first, Q) - 2 * delta(second, Q, 2)
    bias = exact(base[f"{Q}.bias"]) + 0.75 * exact(first[f"{Q}.lora_B.bias"]) - 4 * exact(second[f"{Q}.lora_B.bias"])
    assert close(found[f"{Q}.weight"], weight)
    assert close(found[f"{Q}.bias"], bias)
    assert close(found[f"{HEAD}.weight"], exact(base[f"{HEAD}.weight"]) - 2 * delta(second, HEAD, 2))
    assert report.attempted == 4
    manifest = json.loads((tmp_path / "out" / "merge_manifest.json").read_text())
    assert [entry["weight"] for entry in manifest["adapters"]] == [0.5, -2.0]


def test_adapters_of_fused_and_of_single_experts_meet_in_one_tensor(tmp_path: Path, numbers: Numbers) -> None:
    """One adapter covers a whole fused parameter, the other one expert's up_proj: the rows where they meet get both."""
    experts = "model.layers.0.mlp.experts"
    base = {f"{experts}.gate_up_proj": numbers(2, 8, 6), f"{experts}.down_proj": numbers(2, 6, 4)}
    fused = {f"{experts}.lora_A.weight": numbers(4, 6), f"{experts}.lora_B.weight": numbers(8, 4)}
    single = pair(numbers, f"{experts}.1.up_proj", 4, 6)
    one = write_adapter(tmp_path / "one", fused, target_modules=None, target_parameters=["experts.gate_up_proj"])
    two = write_adapter(tmp_path / "two", single, target_modules=["experts.1.up_proj"])

    found, _ = merged(write_base(tmp_path / "b", base, num_experts=2), [one, two], tmp_path / "out")

    expected = exact(base[f"{experts}.gate_up_proj"])
    for e in range(2):
        for k in range(2):
            column, row = (
                exact(fused[f"{experts}.lora_B.weight"])[:, k * 2 + e],
                exact(fused[f"{experts}.lora_A.weight"])[e * 2 + k],
            )
            expected[e] += 1.5 * np.outer(column, row)
    expected[1, 4:] += delta(single, f"{experts}.1.up_proj")
    assert close(found[f"{experts}.gate_up_proj"], expected)


@pytest.mark.parametrize(
    ("config", "extra", "said"),
    [
        ({"use_dora": True}, {f"{Q}.lora_magnitude_vector": (7,)}, "not both with plain LoRA"),
        ({"modules_to_save": ["q_proj"]}, {f"{Q}.base_layer.weight": (7, HIDDEN)}, "not both with plain LoRA"),
    ],
)
def test_adapters_whose_order_would_matter_are_refused(
    tmp_path: Path, numbers: Numbers, config: dict[str, object], extra: dict[str, tuple[int, ...]], said: str
) -> None:
    one = write_adapter(tmp_path / "one", pair(numbers, Q, 7, HIDDEN))
    lora = {**pair(numbers, Q, 7, HIDDEN), **{key: numbers(*shape) for key, shape in extra.items()}}
    two = write_adapter(tmp_path / "two", lora, **config)

    with pytest.raises(errors.UnsupportedAdapterError, match=said):
        plan_merge(write_base(tmp_path / "b", small_base(numbers)), [one, two])


def test_weights_that_cannot_be(tmp_path: Path, numbers: Numbers) -> None:
    base = write_base(tmp_path / "b", small_base(numbers))
    one = write_adapter(tmp_path / "one", pair(numbers, Q, 7, HIDDEN))
    whole = write_adapter(
        tmp_path / "two",
        {f"{HEAD}.weight": numbers(VOCABULARY, HIDDEN)},
        modules_to_save=["lm_head"],
        target_modules=None,
    )

    for weights, says in (([1.0, 2.0], "and 2 weights"), ([float("nan")], "finite number")):
        with pytest.raises(errors.UsageError, match=says):
            plan_merge(base, one, weights=weights)
    with pytest.raises(errors.UnsupportedAdapterError, match="have no weight"):
        plan_merge(base, whole, weights=[0.5])
    with pytest.raises(errors.UsageError, match="no adapter"):
        plan_merge(base, [])


def test_adapter_names_in_the_file_and_in_folders(tmp_path: Path, numbers: Numbers) -> None:
    """Keys may still carry the adapter's name; a folder of named adapters is refused with the names."""
    base, lora = small_base(numbers), pair(numbers, Q, 7, HIDDEN)
    write_base(tmp_path / "b", base)
    named = {
        key.replace("lora_A.", "lora_A.other.").replace("lora_B.", "lora_B.other."): value
        for key, value in lora.items()
    }
    write_adapter(tmp_path / "all" / "other", named)

    found, _ = merged(tmp_path / "b", tmp_path / "all" / "other", tmp_path / "out")

    assert close(found[f"{Q}.weight"], exact(base[f"{Q}.weight"]) + delta(lora, Q))
    with pytest.raises(errors.InputNotFoundError, match="named adapters: other"):
        plan_merge(tmp_path / "b", tmp_path / "all")


def test_what_paramwrapper_refuses_is_refused_in_its_words(tmp_path: Path, numbers: Numbers) -> None:
    experts = "model.layers.0.mlp.experts"
    base = write_base(tmp_path / "b", {f"{experts}.down_proj": numbers(2, 6, 4)}, num_experts=2)
    fused = {f"{experts}.lora_A.weight": numbers(4, 4), f"{experts}.lora_B.weight": numbers(6, 4)}
    config: dict[str, object] = {"target_modules": None, "target_parameters": ["experts.down_proj"]}
    write_adapter(tmp_path / "a", {**fused, f"{experts}.lora_magnitude_vector": numbers(6)}, use_dora=True, **config)
    write_adapter(tmp_path / "c", {**fused, f"{experts}.lora_B.bias": numbers(6)}, lora_bias=True, **config)

    for folder, said in (("a", "use_dora=True"), ("c", "lora_bias=True")):
        with pytest.raises(errors.UnsupportedAdapterError, match=rf"lora.ParamWrapper does not work with {said}"):
            plan_merge(base, tmp_path / folder)


def test_nan_in_a_whole_tensor_or_a_token_is_refused(tmp_path: Path, numbers: Numbers) -> None:
    base = write_base(tmp_path / "b", small_base(numbers))
    head = numbers(VOCABULARY, HIDDEN)
    head[3, 2] = float("nan")
    write_adapter(tmp_path / "a", {f"{HEAD}.weight": head}, modules_to_save=["lm_head"], target_modules=None)

    with pytest.raises(errors.NonFiniteError, match="lm_head"):
        merged(base, tmp_path / "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_exclude_modules_explains_what_is_missing(tmp_path: Path, numbers: Numbers) -> None:
    base = small_base(numbers) | {"model.layers.0.self_attn.o_proj.weight": numbers(6, 7)}
    write_adapter(
        tmp_path / "a",
        pair(numbers, Q, 7, HIDDEN),
        target_modules=["q_proj", "o_proj"],
        exclude_modules=["self_attn.o_proj"],
    )

    found, _ = merged(write_base(tmp_path / "b", base), tmp_path / "a", tmp_path / "out")

    same_but(found, base, f"{Q}.weight")


def test_a_targeted_head_that_the_file_lacks_is_an_error(tmp_path: Path, numbers: Numbers) -> None:
    write_adapter(tmp_path / "a", pair(numbers, Q, 7, HIDDEN), target_modules=["q_proj", "lm_head"])

    with pytest.raises(errors.UncoveredTargetsError, match="lm_head"):
        plan_merge(write_base(tmp_path / "b", small_base(numbers)), tmp_path / "a")
