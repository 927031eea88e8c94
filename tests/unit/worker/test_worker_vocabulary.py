"""What a right merge makes of embeddings and head, by hand: grown vocabularies, and ends that were tied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.worker.checkpoints.family import Checkpoint, Routing
from harness.worker.checkpoints.tensors import TensorSpec
from harness.worker.recipes.recipe import recipe
from harness.worker.stages.shards import INDEX
from harness.worker.stages.vocabulary import EMBEDDING, HEAD_KEY, Vocabulary, vocabulary_size

KEY = "model.embed_tokens.weight"
OWN = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
BOTH = {EMBEDDING: torch.ones(3, 2), "lm_head": torch.ones(3, 2)}


def _checkpoint(*, tied: bool, nested: bool = False) -> Checkpoint:
    """Two tokens of two features; a norm beside them."""
    ends = [TensorSpec(key=KEY, shape=(2, 2), kind="embedding", module=EMBEDDING)]
    if not tied:
        ends.append(TensorSpec(key=HEAD_KEY, shape=(2, 2), kind="head", module="lm_head"))
    config: dict[str, Any] = {"vocab_size": 2}
    return Checkpoint(
        config={"tie_word_embeddings": tied, **({"text_config": config} if nested else config)},
        tensors=(*ends, TensorSpec(key="norm", shape=(2,))),
        routing=Routing(top_k=1, scores="softmax"),
        layers_with_experts=(0,),
        num_experts=1,
    )


def test_nothing_changes_where_neither_end_does() -> None:
    checkpoint = _checkpoint(tied=True)
    found = Vocabulary.of(checkpoint, {"q_proj": torch.ones(3, 2)})

    assert (found.checkpoint, found.config, found.untied) == (checkpoint, {}, None)
    assert not Vocabulary.of(_checkpoint(tied=False), {EMBEDDING: torch.ones(2, 2)}).config


def test_rows_of_new_tokens_begin_at_zero() -> None:
    found = Vocabulary.of(_checkpoint(tied=False), BOTH)
    before = found.before({KEY: OWN, HEAD_KEY: 10 * OWN, "norm": torch.ones(2)})

    assert (dict(found.config), found.grown, found.untied) == ({"vocab_size": 3}, {KEY, HEAD_KEY}, None)
    assert [spec.shape for spec in found.checkpoint.tensors] == [(3, 2), (3, 2), (2,)]
    assert before[KEY].tolist() == [[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]
    assert before[HEAD_KEY].tolist() == [[10.0, 20.0], [30.0, 40.0], [0.0, 0.0]]
    assert before["norm"].shape == (2,)


@pytest.mark.parametrize("end", [EMBEDDING, "lm_head"])
def test_a_delta_on_one_of_two_tied_ends_unties_them(end: str) -> None:
    found = Vocabulary.of(_checkpoint(tied=True), {end: torch.ones(2, 2)})
    added = found.checkpoint.tensors[-1]

    assert (dict(found.config), found.untied) == ({"tie_word_embeddings": False}, KEY)
    assert (added.key, added.module, added.kind) == (HEAD_KEY, "lm_head", "head")
    assert found.before({KEY: OWN, "norm": torch.ones(2)})[HEAD_KEY].equal(OWN)


@pytest.mark.parametrize("nested", [False, True])
def test_config_json_must_say_what_changed_and_nothing_else(tmp_path: Path, *, nested: bool) -> None:
    checkpoint = _checkpoint(tied=False, nested=nested)
    found = Vocabulary.of(checkpoint, BOTH)
    base, merged = tmp_path / "base", tmp_path / "merged"
    for directory in (base, merged):
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(checkpoint.config))

    assert not found.says(base, merged), "the base's own vocab_size"
    found.finish(merged, None)
    assert found.says(base, merged)
    config = json.loads((merged / "config.json").read_text())
    assert config.get("text_config", config)["vocab_size"] == 3
    (merged / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert not found.says(base, merged)


def test_a_head_is_written_beside_its_embeddings_and_the_index_names_it(tmp_path: Path) -> None:
    """Two shards: twice two rows of eight bytes, and a norm of eight."""
    checkpoint = _checkpoint(tied=True)
    save_file({KEY: OWN}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    save_file({"norm": torch.ones(2)}, tmp_path / "b.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(checkpoint.config))
    weight_map = {KEY: "a.safetensors", "norm": "b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": weight_map}))

    Vocabulary.of(checkpoint, {EMBEDDING: torch.ones(2, 2)}).finish(tmp_path, 5 * OWN)

    index = json.loads((tmp_path / INDEX).read_text())
    assert load_file(tmp_path / "a.safetensors")[HEAD_KEY].equal(5 * OWN)
    assert index["weight_map"] == {**weight_map, HEAD_KEY: "a.safetensors"}
    assert index["metadata"]["total_size"] == 40
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False


class _Model:
    """A model with embeddings and head, which it resizes as transformers does: new rows are not zero."""

    def __init__(self, *, tied: bool) -> None:
        self.embedding, self.head = torch.nn.Embedding(2, 2), torch.nn.Linear(2, 2, bias=False)
        self.embedding.weight = torch.nn.Parameter(OWN.clone())
        self.head.weight = self.embedding.weight if tied else torch.nn.Parameter(10 * OWN)

    def get_input_embeddings(self) -> Any:
        return self.embedding

    def get_output_embeddings(self) -> Any:
        return self.head

    def resize_token_embeddings(self, rows: int, *, mean_resizing: bool) -> None:
        assert not mean_resizing
        for end in (self.embedding, self.head):
            new = torch.full((rows - len(end.weight), 2), 7.0)
            end.weight = torch.nn.Parameter(torch.cat([end.weight.detach(), new]))


def test_a_loaded_base_is_prepared_for_deltas() -> None:
    larger, tied = _Model(tied=False), _Model(tied=True)
    Vocabulary.of(_checkpoint(tied=False), BOTH).prepare(larger)
    Vocabulary.of(_checkpoint(tied=True), {EMBEDDING: torch.ones(2, 2)}).prepare(tied)
    with torch.no_grad():
        tied.embedding.weight += 1

    assert larger.embedding.weight.tolist() == [[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]
    assert larger.head.weight.tolist() == [[10.0, 20.0], [30.0, 40.0], [0.0, 0.0]]
    assert tied.head.weight.equal(OWN), "it no longer follows the embeddings"


def test_the_vocabulary_that_is_trained_on_is_the_base_s_and_new_tokens() -> None:
    for nested in (False, True):
        checkpoint = _checkpoint(tied=False, nested=nested)
        assert vocabulary_size(checkpoint, recipe("lora")) == 2
        assert vocabulary_size(checkpoint, recipe("lora-resized")) == 2 + 5
