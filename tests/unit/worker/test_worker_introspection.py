"""Families by introspection: sizes by name, the depth by looking, the layout by numbered parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.worker.checkpoints.family import Checkpoint, Introspected
from harness.worker.checkpoints.tensors import TensorSpec
from harness.worker.checkpoints.writer import write_checkpoint
from harness.worker.introspection import description, saved
from harness.worker.introspection.catalogue import Known
from harness.worker.introspection.description import _spread, _values, described, write_description
from harness.worker.introspection.layout import BUFFER, OnDisk, read_layout, save_tensors
from harness.worker.introspection.parts import Part, by_kind, experts_of, mixes_tokens, parts_of
from harness.worker.introspection.saved import NotSavedAsLoadedError, deltas_on_disk
from harness.worker.introspection.sizes import tiny
from harness.worker.introspection.smallest import NotDerivedError, Smallest, related, smallest
from harness.worker.observation import UnsupportedError
from harness.worker.recipes.recipe import recipe
from harness.worker.stages.targets import Form, expected_targets
from harness.worker.stages.targets import by_kind as counted
from harness.worker.stages.tensor_gate import on_disk
from tests.unit.worker.introspection_toys import EXPERTS, HIDDEN, ToyConfig, ToyModel, toy


def test_sizes_are_tiny_by_name_and_of_the_kind_that_they_replace() -> None:
    settings = {
        "hidden_size": 4096, "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": None, "router_aux_loss_coef": 0.001,
        "output_router_logits": True, "rms_norm_eps": 1e-5, "sliding_window": None, "bos_token_id": None,
        "image_token_id": 151655, "some_unknown_size": 300, "num_hidden_layers": 32, "attention_dropout": 0.1,
    }  # fmt: skip

    made = tiny(settings)

    assert made == {
        "hidden_size": 48, "vocab_size": 104, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "router_aux_loss_coef": 0.0, "output_router_logits": False, "bos_token_id": 2, "image_token_id": 3,
        "some_unknown_size": 16, "attention_dropout": 0.0,
    }  # fmt: skip
    assert type(made["router_aux_loss_coef"]) is float
    assert made["output_router_logits"] is False


def test_one_expert_for_a_token_stays_one_and_no_groups_stay_none() -> None:
    assert tiny({"num_experts_per_tok": 1, "n_group": 1, "topk_group": 1}) == {}
    assert tiny({"n_group": 8, "topk_group": 4}) == {"n_group": 4, "topk_group": 2}


def test_heads_of_latent_attention_are_made_of_their_parts() -> None:
    settings = {"qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "qk_head_dim": 192, "head_dim": 64}
    whole = {"num_attention_heads": 128, "num_key_value_heads": 128, **settings}

    assert tiny(settings) == {"qk_rope_head_dim": 16, "qk_nope_head_dim": 24, "qk_head_dim": 40, "head_dim": 16}
    assert tiny(whole)["num_key_value_heads"] == tiny(whole)["num_attention_heads"] == 4
    assert tiny({"qk_rope_head_dim": 0})["qk_rope_head_dim"] == 0


def test_what_is_otherwise_in_single_layers_stays_so_in_proportion() -> None:
    made = tiny({"head_dim": 256, "per_layer_config": {"05": {"head_dim": 512}}})

    assert made == {"head_dim": 32, "per_layer_config": {"05": {"head_dim": 64}}}


def test_sections_of_rotary_dimensions_add_up_to_half_of_them() -> None:
    rope = {"rope_type": "default", "mrope_section": [24, 20, 20]}

    assert related({"head_dim": 32}, {"rope_parameters": rope}, takes_images=False)["rope_parameters"][
        "mrope_section"
    ] == [6, 5, 5]
    assert "rope_parameters" not in related({}, {"rope_parameters": {"rope_type": "default"}}, takes_images=False)


def test_as_many_layers_are_kept_as_show_every_kind() -> None:
    made = smallest(ToyConfig, ToyModel)

    assert made.layers == 2  # first_k_dense_replace is 1 by rule, so the second has experts
    assert made.config.hidden_size == 48
    assert len(made.config.kinds) == 2


def test_no_small_form_is_invented() -> None:
    class Refusing(ToyConfig):
        def __init__(self, **settings: Any) -> None:
            if settings.get("hidden_size") == 48:
                raise ValueError("hidden_size must be a multiple of 1024")
            super().__init__(**settings)

    with pytest.raises(NotDerivedError, match="multiple of 1024"):
        smallest(Refusing, ToyModel)


@pytest.mark.parametrize("small", [True, False])
def test_a_model_without_experts_is_no_failure_of_the_stack(monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
    """Whether its small form can be derived or not: there is nothing to be judged, in one line and no traceback."""

    def derived(_it: object) -> Smallest:
        if not small:
            raise NotDerivedError("ToyConfig has none of num_hidden_layers")
        config: Any = SimpleNamespace(num_hidden_layers=2, first_k_dense_replace=2)
        return Smallest(config=config, model_class=ToyModel, layers=2)

    it = Known(model_type="toy", config_class=ToyConfig, model_class=ToyModel)
    monkeypatch.setattr(description, "known", lambda _name: it)
    monkeypatch.setattr(description, "smallest_of", derived)
    monkeypatch.setattr(description, "may_have_experts", lambda _name: False)

    with pytest.raises(UnsupportedError) as caught:
        description.describe("toy")

    assert str(caught.value) == "ToyModel has no routed experts that the harness can judge"


def test_a_model_that_may_have_experts_and_has_no_small_form_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def derived(_it: object) -> Smallest:
        raise NotDerivedError("the rules do not lead to one")

    it = Known(model_type="toy", config_class=ToyConfig, model_class=ToyModel)
    monkeypatch.setattr(description, "known", lambda _name: it)
    monkeypatch.setattr(description, "smallest_of", derived)
    monkeypatch.setattr(description, "may_have_experts", lambda _name: True)

    with pytest.raises(NotDerivedError, match="the rules do not lead to one"):
        description.describe("toy")


def test_experts_routers_and_the_rest_are_told_apart() -> None:
    model = toy()
    (experts,) = experts_of(model)

    kinds = {kind: [part.name for part in parts] for kind, parts in by_kind(parts_of(model)).items()}

    assert (experts.path, experts.block, experts.count) == ("layers.1.mlp.experts", "layers.1.mlp", EXPERTS)
    assert kinds == {
        "embedding": ["embed_tokens.weight"],
        "attention": ["layers.0.self_attn.q_proj.weight", "layers.1.self_attn.q_proj.weight"],
        "other": ["layers.0.self_attn.indexer.wk.weight", "layers.1.self_attn.indexer.wk.weight"],
        "dense": ["layers.0.mlp.up_proj.weight"],
        "router": ["layers.1.mlp.gate.weight"],
        "expert": ["layers.1.mlp.experts.gate_up_proj", "layers.1.mlp.experts.down_proj"],
        "shared_expert": ["layers.1.mlp.shared_experts.weight"],
        "head": ["lm_head.weight"],
    }
    assert mixes_tokens(model.layers[1])
    assert not mixes_tokens(model.layers[1].mlp)


def _layout() -> dict[str, OnDisk]:
    return read_layout(toy(), {"layers.1.mlp.experts.gate_up_proj": 4, "layers.1.mlp.experts.down_proj": 4})


def test_numbered_parameters_say_what_lies_where() -> None:
    layout = _layout()

    assert layout["layers.1.mlp.experts.2.w3"] == OnDisk(
        shape=(4, 6), parameters=("layers.1.mlp.experts.gate_up_proj",), expert=2, floating=True
    )
    assert layout["layers.1.mlp.router.weight"].parameters == ("layers.1.mlp.gate.weight",)
    assert layout["table"] == OnDisk(shape=(3,), parameters=(), expert=None, floating=False)
    assert BUFFER < 0  # no parameter's number


def _checkpoint() -> Checkpoint:
    model = toy()
    parts = {part.name: part for part in parts_of(model)}
    specs = tuple(
        TensorSpec(
            key=key,
            shape=it.shape,
            kind=parts[it.parameters[0]].kind if it.parameters else "other",
            module=parts[it.parameters[0]].module if it.parameters else None,
            expert=it.expert,
            sources=tuple(parts[name].delta for name in it.parameters),
            literal=None if it.floating else torch.arange(3).numpy().tobytes().hex(),
            stored_as=None if it.floating else "torch.int64",
        )
        for key, it in _layout().items()
    )
    inside = Introspected(model_type="toy", experts=tuple(experts_of(model)), parts=tuple(parts.values()))
    return Checkpoint(
        config={"model_type": "toy", "vocab_size": 104},
        tensors=specs,
        routing=None,
        layers_with_experts=(0,),
        num_experts=EXPERTS,
        generation_config={},
        introspected=inside,
    )


def _loaded(base: Path) -> Any:
    """Load what was written as the toy's own library would."""
    tensors: dict[str, Any] = {}
    for path in base.glob("*.safetensors"):
        tensors |= load_file(path)
    model = toy().double()
    own = model.state_dict()
    for name, tensor in own.items():
        path, _, leaf = name.rpartition(".")
        if leaf == "gate_up_proj":
            rows = [torch.cat([tensors[f"{path}.{e}.w1"], tensors[f"{path}.{e}.w3"]]) for e in range(EXPERTS)]
        elif leaf == "down_proj":
            rows = [tensors[f"{path}.{e}.w2"] for e in range(EXPERTS)]
        else:
            own[name] = tensors[name.replace(".gate.weight", ".router.weight")]
            continue
        own[name] = torch.stack(rows).to(tensor.dtype)
    model.load_state_dict(own)
    return model


def test_deltas_go_where_the_library_saves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint()
    write_checkpoint(checkpoint, tmp_path / "base", seed=0, dtype="float32")
    monkeypatch.setattr(saved, "load_exactly", _loaded)
    delta = torch.zeros(EXPERTS, 8, HIDDEN, dtype=torch.float64)
    delta[2, 5, 1] = 0.25  # the second row of up, of the third expert
    name = "layers.1.mlp.experts:gate_up_proj"

    found = on_disk(checkpoint, {name: delta}, tmp_path / "base")

    moved = {key: it.nonzero().tolist() for key, (_, it) in found.items() if it.any()}
    assert moved == {"layers.1.mlp.experts.2.w3": [[1, 1]]}
    assert float(found["layers.1.mlp.experts.2.w3"][1][1, 1]) == 0.25
    assert {names for names, _ in found.values()} == {(name,)}
    assert len(found) == 2 * EXPERTS  # gate and up of each: what the pair covers, whatever its delta


def test_a_base_that_is_not_saved_as_it_was_loaded_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(_checkpoint(), tmp_path / "base", seed=0, dtype="float32")

    def rounded(base: Path) -> Any:
        model = _loaded(base)
        with torch.no_grad():
            model.lm_head.weight.mul_(1 + 1e-6)
        return model

    monkeypatch.setattr(saved, "load_exactly", rounded)

    with pytest.raises(NotSavedAsLoadedError, match="lm_head"):
        deltas_on_disk(tmp_path / "base", {})


def test_a_description_is_read_back(tmp_path: Path) -> None:
    checkpoint = _checkpoint()
    named = replace(checkpoint, tensors=(), introspected=Introspected(model_type="toy"))
    assert described(named, tmp_path) is named

    write_description(checkpoint, tmp_path)

    assert described(named, tmp_path) == checkpoint


def test_all_that_was_found_of_a_kind_is_a_target() -> None:
    checkpoint = _checkpoint()
    targets = expected_targets(checkpoint, recipe("lora"), Form(fused=True))

    assert {kind: len(members) for kind, members in targets.items()} == {
        "attention": 2, "dense": 1, "expert": 2, "shared_expert": 1,
    }  # fmt: skip
    assert targets["expert"] == {("layers.1.mlp.experts", "gate_up_proj"), ("layers.1.mlp.experts", "down_proj")}
    assert counted(checkpoint, targets["expert"]) == {"expert": 2}
    without = expected_targets(checkpoint, recipe("lora-down-only"), Form(fused=True))
    assert without["expert"] == {("layers.1.mlp.experts", "down_proj")}
    assert Part(module="a", parameter=None, kind="router").delta == "a"


def _filled(initial: Any, **fields: Any) -> dict[str, Any]:
    spec = TensorSpec(key=fields.pop("key", "a.weight"), shape=tuple(initial.shape), **fields)
    layout = OnDisk(shape=spec.shape, parameters=("a",), expert=None, floating=initial.is_floating_point())
    return _values(spec, layout, initial, tied=False)


def test_matrices_are_drawn_and_what_begins_near_a_value_stays_near_it() -> None:
    matrix = torch.tensor([[0.5, -0.5], [-0.25, 0.25]])

    assert _filled(matrix, kind="router") == {"exponent": 1}
    assert _filled(matrix, kind="attention") == {"exponent": None}
    assert _filled(torch.ones(3)) == {"init": "random", "exponent": 4, "offset": 1.0}
    assert _filled(torch.tensor([0.9, 1.1])) == {"init": "random", "exponent": 4, "offset": 1.0}
    assert _filled(torch.tensor([2.0, 1.0]), key="a.A_log") == {"exponent": 1}


def test_tables_stay_and_those_of_zeros_name_every_expert() -> None:
    table = _filled(torch.tensor([3, 1, 2]))
    assert table["stored_as"] == "torch.int64"
    assert bytes.fromhex(table["literal"]) == torch.tensor([3, 1, 2]).numpy().tobytes()

    spread = _spread(torch.zeros(5, 2, dtype=torch.int64))
    assert spread.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [0, 1]]


def test_a_model_is_saved_and_read_back() -> None:
    tensors, config = save_tensors(toy())

    assert config == {"model_type": "toy"}
    assert tensors["table"].tolist() == [0, 1, 2]
