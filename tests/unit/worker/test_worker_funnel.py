"""The funnel's counts, and what decides them, by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from harness.contract.funnel import FUNNEL_STEPS
from harness.result import Funnel
from harness.worker.observation import Observation
from harness.worker.stages.biases import biases_of, keep, trained_biases
from harness.worker.stages.deltas import _as_in
from harness.worker.stages.experts_watch import bias_of, routing_weight
from harness.worker.stages.funnel import record, with_delta, with_gradient
from harness.worker.stages.whole import is_trained, saved_copy, whole_modules


def _layer(b: float) -> Any:
    pair = {"lora_A": torch.ones(1, 1), "lora_B": torch.tensor([[0.0, b]])}
    parts = {name: {"default": SimpleNamespace(weight=weight)} for name, weight in pair.items()}
    return SimpleNamespace(**parts, lora_embedding_A={}, lora_embedding_B={})


def _embedding(a: float) -> Any:
    pair = {"lora_embedding_A": torch.tensor([[0.0, a]]), "lora_embedding_B": torch.ones(1, 1)}
    return SimpleNamespace(**{name: {"default": weight} for name, weight in pair.items()}, lora_A={}, lora_B={})


def test_of_a_kind_that_is_lost_nothing_is_left(tmp_path: Path) -> None:
    observation = Observation(tmp_path / "observation.json")
    record(observation, "asked", {"attention": 2, "expert": 4})
    record(observation, "attached", {"attention": 2, "router": 1})
    record(observation, "gradient", {"attention": 1})

    assert observation.data["funnel"] == {
        "attention": {"asked": 2, "attached": 2, "gradient": 1},
        "expert": {"asked": 4, "attached": 0, "gradient": 0},
        "router": {"asked": 0, "attached": 1, "gradient": 0},
    }


def test_a_target_has_a_gradient_where_all_its_tensors_have() -> None:
    inner, outer = ("experts", "gate_up_proj"), ("experts", "down_proj")
    layers = {"base_model.model.experts.base_layer": (inner, None), "base_model.model.experts": (outer, None)}
    norms = {
        "experts.base_layer.lora_A.default.weight": 1.0,
        "experts.base_layer.lora_B.default.weight": 0.0,
        "experts.lora_A.default.weight": 1.0,
        "experts.lora_B.default.weight": 2.0,
    }

    assert with_gradient(layers, norms) == {outer}
    assert with_gradient(layers, {**norms, "experts.base_layer.lora_B.default.weight": 0.1}) == {inner, outer}
    assert with_gradient(layers, {}) == set(), "what was not watched had none"


def test_a_target_has_moved_where_neither_factor_is_zero() -> None:
    """A Linear's lora_B begins at zero, an embedding's lora_embedding_A."""
    layers = {
        "a": (("q_proj", None), _layer(1.0)),
        "b": (("k_proj", None), _layer(0.0)),
        "c": (("embed_tokens", None), _embedding(1.0)),
        "d": (("other_tokens", None), _embedding(0.0)),
    }

    assert with_delta(layers, "default") == {("q_proj", None), ("embed_tokens", None)}
    assert with_delta(layers, "frozen") == set()


def test_what_is_loaded_is_held_against_the_file_both_ways() -> None:
    saved = {"a": torch.ones(2), "b": torch.zeros(2)}

    assert _as_in(saved, dict(saved), []).passed
    assert not _as_in(saved, {"a": saved["a"]}, []).passed
    assert not _as_in(saved, {**saved, "c": torch.ones(1)}, []).passed
    assert not _as_in(saved, {**saved, "b": torch.tensor([0.0, -0.0])}, []).passed
    assert _as_in(saved, {"a": saved["a"], "b": torch.ones(2)}, []).value == "1/2"


def test_a_funnel_is_whole_where_every_step_has_what_was_asked_for() -> None:
    level = dict.fromkeys(FUNNEL_STEPS, 3)

    assert tuple(Funnel.model_fields) == FUNNEL_STEPS
    assert Funnel(**level).whole
    assert not Funnel(**{**level, "merged": 2}).whole
    assert not Funnel(asked=3, attached=0).whole
    assert Funnel(asked=3, attached=3).whole, "what was not taken loses nothing"
    assert not Funnel(asked=3).whole
    assert Funnel(**{**level, "asked": 0}).whole, "what was allowed and not asked for"
    assert not Funnel(**{**level, "asked": 0, "saved": 0}).whole


def test_a_router_multiplies_with_its_weight_and_its_active_lora() -> None:
    base = SimpleNamespace(weight=torch.ones(2, 3), e_score_correction_bias=torch.tensor([1.0, 2.0]))
    wrapped: Any = SimpleNamespace(
        get_base_layer=lambda: base,
        disable_adapters=False,
        merged=False,
        active_adapters=["default", "other"],
        lora_A={"default": None},
        get_delta_weight=lambda name: {"default": torch.full((2, 3), 0.5)}[name],
    )

    assert routing_weight(base).equal(torch.ones(2, 3))
    assert routing_weight(wrapped).equal(torch.full((2, 3), 1.5))
    wrapped.disable_adapters = True
    assert routing_weight(wrapped).equal(torch.ones(2, 3))
    assert bias_of(wrapped).tolist() == [1.0, 2.0]
    assert bias_of(SimpleNamespace(weight=base.weight)) is None


class _Whole(torch.nn.Module):
    """PEFT's wrapper of a module that is trained whole, under PEFT's names."""

    def __init__(self, trained: float) -> None:
        super().__init__()
        self.original_module, copy = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.original_module.weight)
        torch.nn.init.constant_(copy.weight, trained)
        self.modules_to_save = torch.nn.ModuleDict({"default": copy})


def test_what_is_trained_whole_is_found_named_and_has_moved_where_it_is_another() -> None:
    model = torch.nn.ModuleDict({"lm_head": _Whole(1.0), "embed_tokens": _Whole(2.0), "q_proj": torch.nn.Linear(1, 1)})
    found = whole_modules(model)
    names = [name for name, _ in model.named_parameters() if is_trained(name)]

    assert {key: target for key, (target, _) in found.items()} == {
        "lm_head": ("lm_head", None), "embed_tokens": ("embed_tokens", None),
    }  # fmt: skip
    assert with_delta(found, "default") == {("embed_tokens", None)}
    assert with_gradient(found, {"lm_head.modules_to_save.default.weight": 1.0}) == {("lm_head", None)}
    assert [saved_copy(name) for name in names] == ["lm_head.weight", "embed_tokens.weight"]
    assert not is_trained("lm_head.original_module.weight")


def _wrapped(bias: list[float] | None) -> Any:
    parameter = None if bias is None else torch.nn.Parameter(torch.tensor(bias))
    return SimpleNamespace(get_base_layer=lambda: SimpleNamespace(bias=parameter))


def test_a_bias_is_found_behind_its_lora_and_has_moved_where_it_is_another(tmp_path: Path) -> None:
    q, k, v = (f"base_model.model.{name}_proj" for name in "qkv")
    layers = {
        q: (("q_proj", None), _wrapped([1.0, 2.0])),
        k: (("k_proj", None), _wrapped([3.0])),
        v: (("v_proj", None), _wrapped([4.0])),
        "base_model.model.o_proj": (("o_proj", None), _wrapped(None)),
        "base_model.model.experts": (("experts", "down_proj"), _wrapped([5.0])),
    }
    keep(biases_of(layers), tmp_path)
    layers[v][1].get_base_layer().bias.requires_grad_(requires_grad=False)
    with torch.no_grad():
        layers[q][1].get_base_layer().bias += torch.tensor([0.0, 0.5])
    found = trained_biases(layers, tmp_path)

    assert {name: target for name, (target, _) in found.items()} == {
        f"{q}.base_layer.bias": ("q_proj", "bias"), f"{k}.base_layer.bias": ("k_proj", "bias"),
    }  # fmt: skip
    assert found[f"{q}.base_layer.bias"][1].delta.tolist() == [0.0, 0.5]
    assert with_delta(found, "default") == {("q_proj", "bias")}
    own = {name.removeprefix("base_model.model."): 1.0 for name in found}
    assert with_gradient(found, own) == {("q_proj", "bias"), ("k_proj", "bias")}
    assert is_trained("q_proj.base_layer.bias")
    assert not is_trained("q_proj.bias")
