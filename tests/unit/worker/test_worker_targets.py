"""What a recipe asks for, counted by hand from what the families' architectures have."""

from __future__ import annotations

import dataclasses

import pytest

from harness.worker.checkpoints.family import Checkpoint, build
from harness.worker.checkpoints.geometry import geometry
from harness.worker.recipes.recipe import recipe
from harness.worker.stages.attach import _told_of_targets
from harness.worker.stages.peft_names import rank_and_scaling
from harness.worker.stages.targets import Form, also_allowed, by_kind, expected_targets, kind_of

FUSED, LISTED = Form(fused=True), Form(fused=False)


def _checkpoint(family: str) -> Checkpoint:
    return build(family, geometry("distinct"), "published")


@pytest.mark.parametrize(
    ("family", "form", "counts"),
    [
        # Two layers with q, k, v, o; eight experts with three Linears each, or two parameters.
        ("qwen3_moe", FUSED, {"attention": 8, "expert": 4}),
        ("qwen3_moe", LISTED, {"attention": 8, "expert": 48}),
        # Three layers, the first of them dense; a shared expert in the others.
        ("glm4_moe", FUSED, {"attention": 12, "expert": 4, "shared_expert": 6, "dense": 3}),
        # Of latent attention only o_proj has a name of the list.
        ("deepseek_v3", FUSED, {"attention": 3, "expert": 4, "shared_expert": 6, "dense": 3}),
        # One layer of two has full attention.
        ("qwen3_5_moe", FUSED, {"attention": 4, "expert": 4, "shared_expert": 6}),
    ],
)
def test_names_of_tutorials_mean_all_of_that_name(family: str, form: Form, counts: dict[str, int]) -> None:
    targets = expected_targets(_checkpoint(family), recipe("module-names"), form)

    assert {kind: len(members) for kind, members in targets.items()} == counts


@pytest.mark.parametrize(
    ("family", "form", "counts", "allowed"),
    [
        ("qwen3_moe", Form(fused=False, linear_router=True), {"attention": 8, "expert": 48, "router": 2}, 0),
        ("qwen3_moe", FUSED, {"attention": 8, "expert": 4}, 2),
        ("deepseek_v3", LISTED, {"attention": 15, "expert": 48, "shared_expert": 6, "dense": 3}, 2),
        ("qwen3_5_moe", FUSED, {"attention": 9, "expert": 4, "shared_expert": 6, "other": 2}, 2),
    ],
)
def test_all_linear_means_every_linear_map_and_allows_a_router(
    family: str, form: Form, counts: dict[str, int], allowed: int
) -> None:
    plan = recipe("all-linear")

    assert {kind: len(m) for kind, m in expected_targets(_checkpoint(family), plan, form).items()} == counts
    assert sum(map(len, also_allowed(_checkpoint(family), plan, form).values())) == allowed
    assert also_allowed(_checkpoint(family), recipe("module-names"), form) == {}


def test_a_name_of_one_projection_means_half_of_a_fused_parameter() -> None:
    alone = dataclasses.replace(recipe("module-names"), target_modules=("up_proj",))

    assert expected_targets(_checkpoint("qwen3_moe"), alone, FUSED) == {
        "expert": {(f"model.layers.{layer}.mlp.experts", "gate_up_proj") for layer in (0, 1)}
    }
    assert len(expected_targets(_checkpoint("qwen3_moe"), alone, LISTED)["expert"]) == 16


def test_the_router_is_a_linear_or_a_parameter_of_its_own() -> None:
    plan = recipe("lora-router")
    linear = expected_targets(_checkpoint("qwen3_moe"), plan, Form(fused=False, linear_router=True))
    other = expected_targets(_checkpoint("qwen3_moe"), plan, FUSED)

    assert linear["router"] == {("model.layers.0.mlp.gate", None), ("model.layers.1.mlp.gate", None)}
    assert other["router"] == {("model.layers.0.mlp.gate", "weight"), ("model.layers.1.mlp.gate", "weight")}
    assert _told_of_targets({"router": other["router"]}, plan) == {
        "target_parameters": ["model.layers.0.mlp.gate.weight", "model.layers.1.mlp.gate.weight"]
    }


def test_a_router_of_one_expert_is_not_trained() -> None:
    checkpoint = build("qwen3_moe", geometry("single"), "published")

    assert set(expected_targets(checkpoint, recipe("lora-router"), FUSED)) == {"attention"}


def test_peft_is_told_what_a_user_writes() -> None:
    targets = expected_targets(_checkpoint("qwen3_moe"), recipe("lora"), FUSED)

    assert _told_of_targets(targets, recipe("all-linear")) == {"target_modules": "all-linear"}
    assert _told_of_targets(targets, recipe("module-names")) == {
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    }
    assert _told_of_targets(targets, recipe("target-parameters")) == {
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    }
    written_out = _told_of_targets(targets, recipe("lora"))
    assert len(written_out["target_modules"]) == 8
    assert written_out["target_parameters"] == sorted(
        f"model.layers.{layer}.mlp.experts.{role}" for layer in (0, 1) for role in ("down_proj", "gate_up_proj")
    )


def test_two_names_for_one_parameter_are_twice_the_rank_at_the_same_scale() -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"

    assert rank_and_scaling(name, recipe("module-names"), 3) == (6, 2.0)
    assert rank_and_scaling(name, recipe("all-linear"), 3) == (6, 2.0)
    assert rank_and_scaling(name, recipe("target-parameters"), 3) == (3, 2.0)
    assert rank_and_scaling("model.layers.0.mlp.experts.down_proj", recipe("module-names"), 3) == (3, 2.0)


def test_a_target_is_of_the_kind_that_the_checkpoint_describes() -> None:
    checkpoint = _checkpoint("glm4_moe")
    targets = [
        ("model.layers.0.mlp.up_proj", None),
        ("model.layers.1.mlp.experts", "down_proj"),
        ("model.layers.1.mlp.experts.7.up_proj", None),
        ("model.layers.2.mlp.gate", "weight"),
        ("model.layers.2.mlp.shared_experts.up_proj", None),
    ]

    assert [kind_of(checkpoint, target) for target in targets] == [
        "dense", "expert", "expert", "router", "shared_expert",
    ]  # fmt: skip
    assert by_kind(checkpoint, targets) == {"expert": 2, "shared_expert": 1, "router": 1, "dense": 1}
    with pytest.raises(KeyError):
        kind_of(checkpoint, ("model.norm", None))


def test_targets_as_users_write_them_go_with_a_plain_lora_alone() -> None:
    with pytest.raises(ValueError, match="as users write them"):
        dataclasses.replace(recipe("lora-attention"), target_modules=("q_proj",), use_dora=True)


def test_embeddings_and_head_are_kinds_of_their_own() -> None:
    both = expected_targets(_checkpoint("qwen3_5_moe"), recipe("lora-vocabulary"), FUSED)
    tied = build("qwen3_moe", geometry("distinct"), "tied")

    assert (both["embedding"], both["head"]) == ({("model.embed_tokens", None)}, {("lm_head", None)})
    assert set(expected_targets(_checkpoint("glm4_moe"), recipe("lora-embeddings"), FUSED)) == {
        "attention", "embedding",
    }  # fmt: skip
    ends = expected_targets(tied, recipe("lora-vocabulary"), FUSED)
    assert ends["head"] == {("lm_head", None)}, "which has no tensor of its own"
    assert kind_of(tied, ("lm_head", None)) == "head"


def test_what_is_trained_whole_gets_no_lora() -> None:
    plan = recipe("lora-modules-to-save")
    targets = expected_targets(_checkpoint("qwen3_moe"), plan, FUSED)
    told = _told_of_targets(targets, plan)

    assert told["modules_to_save"] == ["lm_head", "model.embed_tokens"]
    assert {name.rpartition(".")[2] for name in told["target_modules"]} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    with pytest.raises(ValueError, match="trained whole"):
        dataclasses.replace(plan, whole=("attention",))
    with pytest.raises(ValueError, match="trained whole"):
        dataclasses.replace(recipe("lora"), whole=("head",))


def test_biases_are_asked_for_where_a_linear_with_a_lora_has_one() -> None:
    """GLM-4.5 has those of queries, keys and values: three of the four Linears of each of three layers."""
    plan = recipe("lora-bias")
    (attention,) = expected_targets(_checkpoint("glm4_moe"), plan, FUSED).values()
    biases = {module for module, parameter in attention if parameter == "bias"}

    assert len(attention) == 12 + 9
    assert {module.rpartition(".")[2] for module in biases} == {"q_proj", "k_proj", "v_proj"}
    assert not [module for module in biases if ".layers.3." in module], "the prediction layer's"
    assert len(_told_of_targets({"attention": attention}, plan)["target_modules"]) == 12
    assert by_kind(_checkpoint("glm4_moe"), attention) == {"attention": 21}
    for family, linears in (("qwen3_moe", 8), ("deepseek_v3", 15), ("qwen3_5_moe", 9)):
        found = expected_targets(_checkpoint(family), plan, FUSED)["attention"]
        assert (len(found), {parameter for _, parameter in found}) == (linears, {None}), family
    with pytest.raises(ValueError, match="plain LoRA"):
        dataclasses.replace(recipe("lora-two-adapters"), bias="lora_only")
