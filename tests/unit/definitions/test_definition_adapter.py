"""What an adapter adds, from files written by hand, in the layouts that PEFT has had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from harness.definitions.adapter import UnreadableAdapterError, deltas_of, norms_of, read_deltas, read_named
from harness.definitions.weights import Deltas, Weights

EXPERTS = "layers.0.mlp.experts"
KEY = f"base_model.model.model.{EXPERTS}"
# Two experts of rank 2 on gate_up_proj (2, 2, 1). Column k * 2 + e of B is rank k of expert e.
A = [[1.0], [10.0], [100.0], [1000.0]]
B = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
# Expert 0: ranks (1, 10) and columns 0 and 2. Expert 1: ranks (100, 1000) and columns 1 and 3.
DELTA = [[[1 + 30.0], [5 + 70.0]], [[200 + 4000.0], [600 + 8000.0]]]
BASE = Weights(
    stored={
        f"{EXPERTS}.gate_up_proj": np.zeros((2, 2, 1)),
        f"{EXPERTS}.down_proj": np.zeros((2, 1, 1)),
        "layers.0.self_attn.q_proj.weight": np.zeros((2, 1)),
    }
)


def write(folder: Path, tensors: dict[str, Any], **config: Any) -> Path:
    """An adapter of these tensors; alpha is twice the rank unless the config says otherwise."""
    folder.mkdir()
    save_file({name: np.array(value) for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_parameters": ["mlp.experts.gate_up_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize("release", ["0.19.1", "0.21.2"])
def test_a_fused_parameter(tmp_path: Path, release: str) -> None:
    tensors = {f"{KEY}.lora_A.weight": A, f"{KEY}.lora_B.weight": B}

    found = read_deltas(write(tmp_path / "adapter", tensors, peft_version=release), BASE)

    assert found.fused[EXPERTS, "gate_up_proj"] == pytest.approx(2 * np.array(DELTA))


@pytest.mark.parametrize("release", ["0.18.1", "0.19.0", None])
def test_the_roles_were_swapped_before_the_flip(tmp_path: Path, release: str | None) -> None:
    """A faces out, (E r, out), and B faces in, (in, E r): the same delta from factors that changed places."""
    a = [[1.0, 5.0], [3.0, 7.0], [2.0, 6.0], [4.0, 8.0]]
    b = [[1.0, 100.0, 10.0, 1000.0]]
    tensors = {f"{KEY}.lora_A.weight": a, f"{KEY}.lora_B.weight": b}

    found = read_deltas(write(tmp_path / "adapter", tensors, peft_version=release), BASE)

    assert found.fused[EXPERTS, "gate_up_proj"] == pytest.approx(2 * np.array(DELTA))


def test_nested_pairs_are_told_apart_by_what_they_face(tmp_path: Path) -> None:
    """One expert, hidden 2, inner 2: gate_up_proj is 4 x 2, down_proj 2 x 2. Which is nested does not matter."""
    base = Weights(stored={f"{EXPERTS}.gate_up_proj": np.zeros((1, 4, 2)), f"{EXPERTS}.down_proj": np.zeros((1, 2, 2))})
    row = [[1.0, 0.0]]
    tensors = {
        f"{KEY}.lora_A.weight": row, f"{KEY}.lora_B.weight": [[3.0], [0.0], [0.0], [0.0]],
        f"{KEY}.base_layer.lora_A.weight": row, f"{KEY}.base_layer.lora_B.weight": [[7.0], [0.0]],
    }  # fmt: skip

    found = read_deltas(write(tmp_path / "adapter", tensors, peft_version="0.21.2", r=1, lora_alpha=1), base)

    assert found.fused[EXPERTS, "gate_up_proj"][0, 0].tolist() == [3.0, 0.0]
    assert found.fused[EXPERTS, "down_proj"][0, 0].tolist() == [7.0, 0.0]


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 1}}, 0.5),
        ({"r": 9}, 2.0),
        ({"alpha_pattern": {"_proj": 1}}, 2.0),  # from a dot on
        ({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 1}}, 0.5),  # the whole name begins with "model."
        ({"alpha_pattern": {"[qk]_proj": 1, "q_proj": 2}}, 0.5),  # the first counts
        ({"alpha_pattern": {"q_proj": 1, r"q_proj\.weight": 2}, "target_parameters": ["self_attn.q_proj.weight"]}, 1.0),
        ({"alpha_pattern": {"q_proj": 1}, "rank_pattern": {"q_proj": 2}, "use_rslora": True}, 0.5**0.5),
    ],
)
def test_a_linear_and_its_scaling(tmp_path: Path, config: dict[str, Any], scaling: float) -> None:
    """The rank is the factors' own."""
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{key}.lora_A.weight": [[1.0], [10.0]], f"{key}.lora_B.weight": [[1.0, 2.0], [3.0, 4.0]]}

    found = read_deltas(write(tmp_path / "adapter", tensors, **config), BASE)

    assert found.linears["layers.0.self_attn.q_proj"] == pytest.approx(scaling * np.array([[21.0], [43.0]]))


def test_dora_scales_each_row_to_its_magnitude(tmp_path: Path) -> None:
    """W + 2 B A is (3, 4; 6, 8), of norms 5 and 10; magnitudes 10 and 5 make (6, 8; 3, 4) of it."""
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    base = Weights(stored={"layers.0.self_attn.q_proj.weight": np.array([[1.0, 0.0], [2.0, 0.0]])})
    tensors = {
        f"{key}.lora_A.weight": [[1.0, 2.0], [0.0, 0.0]], f"{key}.lora_B.weight": [[1.0, 0.0], [2.0, 0.0]],
        f"{key}.lora_magnitude_vector": [10.0, 5.0],
    }  # fmt: skip
    config = {"use_dora": True}

    found = read_deltas(write(tmp_path / "adapter", tensors, **config), base)

    assert found.linears["layers.0.self_attn.q_proj"] == pytest.approx(np.array([[5.0, 8.0], [1.0, 4.0]]))


def test_dora_s_norms_can_be_held_constant() -> None:
    """B is zero now, so W = (1, 0; 2, 0) stands alone: still divided by 5 and 10, and times 10 and 5."""
    key, name = "base_model.model.model.layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj"
    base = Weights(stored={f"{name}.weight": np.array([[1.0, 0.0], [2.0, 0.0]])})
    saved = {
        f"{key}.lora_A.weight": np.array([[1.0, 2.0]]), f"{key}.lora_B.weight": np.array([[2.0], [4.0]]),
        f"{key}.lora_magnitude_vector": np.array([10.0, 5.0]),
    }  # fmt: skip
    config = {"use_dora": True, "lora_alpha": 1}
    norms = norms_of(saved, config, base)
    moved = saved | {f"{key}.lora_B.weight": np.zeros((2, 1))}

    assert norms[name].tolist() == [5.0, 10.0]
    assert deltas_of(moved, config, base, norms=norms).linears[name].tolist() == [[1.0, 0.0], [-1.0, 0.0]]


def test_dora_without_magnitudes_is_refused(tmp_path: Path) -> None:
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{key}.lora_A.weight": [[1.0]], f"{key}.lora_B.weight": [[1.0], [2.0]]}

    with pytest.raises(UnreadableAdapterError, match="magnitudes"):
        read_deltas(write(tmp_path / "adapter", tensors, use_dora=True), BASE)


def test_an_embedding_is_looked_up_so_its_delta_lies_the_other_way_round(tmp_path: Path) -> None:
    """Rank 1 on three tokens of two features: A (1, 3), B (2, 1); the delta is (3, 2), by alpha / r = 4."""
    base = Weights(stored={"embed_tokens.weight": np.arange(6.0).reshape(3, 2), "lm_head.weight": np.ones((3, 2))})
    key = "base_model.model.model.embed_tokens"
    pair = {f"{key}.lora_embedding_A": [[1.0, 2.0, 3.0]], f"{key}.lora_embedding_B": [[10.0], [100.0]]}
    copies = {
        f"{key}.base_layer.weight": np.arange(6.0).reshape(3, 2),
        "base_model.model.lm_head.base_layer.weight": np.ones((3, 2)),
    }

    found = read_deltas(write(tmp_path / "adapter", {**pair, **copies}), base)

    assert found.linears["embed_tokens"].tolist() == [[40.0, 400.0], [80.0, 800.0], [120.0, 1200.0]]
    other = {**copies, f"{key}.base_layer.weight": np.zeros((3, 2))}
    with pytest.raises(UnreadableAdapterError, match="is not what the base has there"):
        read_deltas(write(tmp_path / "other", {**pair, **other}), base)


def test_a_bias_beside_a_lora_takes_the_place_of_the_base_s(tmp_path: Path) -> None:
    """The base's is (1, 2) and the saved one (4, 0). What is asked for one by one is the saved one."""
    key, name = "base_model.model.model.layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj"
    base = Weights(stored={**BASE.stored, f"{name}.bias": np.array([1.0, 2.0])})
    pair = {f"{key}.lora_A.weight": [[1.0]], f"{key}.lora_B.weight": [[1.0], [3.0]]}
    trained = {**pair, f"{key}.base_layer.bias": [4.0, 0.0]}
    found = read_deltas(write(tmp_path / "adapter", trained, bias="lora_only"), base)

    assert found.linears[f"{name}.bias"].tolist() == [3.0, -2.0]
    assert base.plus(found)[f"{name}.bias"].tolist() == [4.0, 0.0]
    assert read_deltas(write(tmp_path / "lost", pair, bias="lora_only"), base).linears.keys() == {name}
    with pytest.raises(UnreadableAdapterError, match="more than pairs"):
        read_deltas(write(tmp_path / "unsaid", trained), base)
    with pytest.raises(UnreadableAdapterError, match="does not have"):
        read_deltas(write(tmp_path / "another", trained, bias="lora_only"), BASE)


def test_a_resized_vocabulary_replaces_the_base_s_and_is_no_delta_where_the_base_has_it(tmp_path: Path) -> None:
    """Three tokens where the base has two. Rows that are new begin at zero, and those that were there are (0, 1)."""
    base = Weights(stored={"embed_tokens.weight": np.ones((2, 1)), "lm_head.weight": np.full((2, 1), 2.0)})
    larger = {"model.embed_tokens": [[1.0], [2.0], [5.0]], "lm_head": [[2.0], [2.0], [7.0]]}
    saved = {f"base_model.model.{name}.weight": rows for name, rows in larger.items()}
    folder = write(tmp_path / "adapter", saved)
    found = read_deltas(folder, base)

    assert found.linears["embed_tokens"].tolist() == [[0.0], [1.0], [5.0]]
    assert base.plus(found)["embed_tokens.weight"].tolist() == larger["model.embed_tokens"]
    assert base.plus(found)["lm_head.weight"].tolist() == larger["lm_head"]
    own = Weights(stored={f"{name.removeprefix('model.')}.weight": np.array(rows) for name, rows in larger.items()})
    assert not read_deltas(folder, own).linears


def test_what_peft_saves_of_a_copy_on_a_resized_vocabulary_is_the_same_twice_and_what_it_was(tmp_path: Path) -> None:
    """The base has one token. What it was before training had a second one already, which is nobody's."""
    base, key = Weights(stored={"lm_head.weight": np.ones((1, 1))}), "base_model.model.lm_head"
    saved = {
        f"{key}.weight": [[2.0], [3.0]],
        f"{key}.modules_to_save.weight": [[2.0], [3.0]],
        f"{key}.original_module.weight": [[1.0], [9.0]],
    }
    found = read_deltas(write(tmp_path / "adapter", saved, modules_to_save=["lm_head"]), base)

    assert found.linears["lm_head"].tolist() == [[1.0], [3.0]]
    for name, other in (("modules_to_save", "stands in its place"), ("original_module", "the base has there")):
        wrong = {**saved, f"{key}.{name}.weight": [[4.0], [3.0]]}
        with pytest.raises(UnreadableAdapterError, match=other):
            read_deltas(write(tmp_path / name, wrong, modules_to_save=["lm_head"]), base)


@pytest.mark.parametrize("config", [{"peft_type": "LOHA"}, {"bias": "all"}])
def test_what_is_not_understood_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(UnreadableAdapterError):
        read_deltas(write(tmp_path / "adapter", {}, **config), BASE)


def test_adapters_in_folders_below_are_added(tmp_path: Path) -> None:
    """Each by its own config: 2 (1, 3) and 1 (10, 10)."""
    key, name = "base_model.model.model.layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj"
    own = {f"{key}.lora_A.weight": [[1.0]], f"{key}.lora_B.weight": [[1.0], [3.0]]}
    other = {f"{key}.lora_A.weight": [[1.0]], f"{key}.lora_B.weight": [[10.0], [10.0]]}
    folder = write(tmp_path / "adapter", own, lora_alpha=2)
    write(folder / "frozen", other, lora_alpha=1)

    assert read_deltas(folder, BASE).linears[name].tolist() == [[12.0], [16.0]]
    assert read_named(folder, BASE).linears[name].tolist() == [[10.0], [10.0]]


def test_dora_beside_another_adapter_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", {})
    write(folder / "frozen", {}, use_dora=True)

    with pytest.raises(UnreadableAdapterError, match="frozen: DoRA beside another adapter"):
        read_deltas(folder, BASE)


def test_a_pair_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    tensors = {f"{KEY}.lora_A.weight": [[1.0, 2.0, 3.0]], f"{KEY}.lora_B.weight": [[1.0], [2.0]]}

    with pytest.raises(UnreadableAdapterError, match=r"no parameter of layers\.0\.mlp\.experts is 2 x 3"):
        read_deltas(write(tmp_path / "adapter", tensors, peft_version="0.21.2"), BASE)


def test_bfloat16_is_read_by_its_bits(tmp_path: Path) -> None:
    """0x3FC0 is 1.5 and 0xC0A0 is -5; a file of one such tensor, written byte for byte."""
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [0, 4]}, "__metadata__": {}}).encode()
    folder = tmp_path / "base"
    folder.mkdir()
    embed = header.replace(b'"x"', b'"model.embed_tokens.weight"')
    (folder / "model.safetensors").write_bytes(len(embed).to_bytes(8, "little") + embed + b"\xc0\x3f\xa0\xc0")

    assert Weights.read(folder)["embed_tokens.weight"].tolist() == [[1.5], [-5.0]]


def test_experts_that_lie_apart_are_put_together() -> None:
    names = {"gate": [[1.0]], "up": [[2.0]], "down": [[3.0]]}
    stored = {
        f"{EXPERTS}.{e}.{name}_proj.weight": 10**e * np.array(value) for e in range(2) for name, value in names.items()
    }
    weights = Weights(stored=stored)

    assert [part[:, 0, 0].tolist() for part in weights.experts(EXPERTS)] == [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]


@pytest.mark.parametrize("ties", [True, False])
def test_embeddings_are_the_head_where_the_configuration_says_so(tmp_path: Path, ties: bool) -> None:
    tmp_path.joinpath("config.json").write_text(json.dumps({"tie_word_embeddings": ties}))
    save_file({"model.embed_tokens.weight": np.array([[1.0], [2.0]])}, tmp_path / "model.safetensors")
    weights = Weights.read(tmp_path)

    assert ("lm_head.weight" in weights.stored) == ties
    moved = weights.plus(Deltas(linears={"embed_tokens": np.ones((2, 1))}))
    assert moved["embed_tokens.weight"].tolist() == [[2.0], [3.0]]
    assert not ties or moved["lm_head.weight"].tolist() == [[1.0], [2.0]], "what is trained of one end is its own"


def test_a_module_that_is_saved_whole_replaces_the_base_s(tmp_path: Path) -> None:
    base = Weights(stored={"lm_head.weight": np.array([[1.0], [2.0]])})
    tensors = {"base_model.model.lm_head.weight": [[5.0], [2.5]]}

    found = read_deltas(write(tmp_path / "adapter", tensors, modules_to_save=["lm_head"]), base)

    assert base.plus(found)["lm_head.weight"].tolist() == [[5.0], [2.5]]
    with pytest.raises(UnreadableAdapterError, match="more than pairs"):
        read_deltas(write(tmp_path / "other", tensors), base)
