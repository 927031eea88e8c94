"""Checkpoints as data and as files: what the families claim to exercise is looked for in what they write."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from harness.matrix.catalogue import read_catalogue
from harness.worker.checkpoints.family import Checkpoint, VariantNotOfferedError, build
from harness.worker.checkpoints.geometry import PRESETS, geometry
from harness.worker.checkpoints.variants import VARIANTS
from harness.worker.checkpoints.writer import write_checkpoint
from harness.worker.stages.coding import NEVER_QUANTISED

FAMILIES = read_catalogue().families
ENDS = ("embedding", "head")
"""Kinds that lie in no layer."""
PINNED = {
    "qwen3_moe": "b9eb15e29b69a06b",
    "glm4_moe": "cc685459f6ed8d96",
    "deepseek_v3": "75d47ff365e66c86",
    "qwen3_5_moe": "fe398a2b3db9fd61",
}
"""The first half of each family's SHA-256, as it was when the family was added."""


def _written(
    family: str, directory: Path, *, preset: str = "distinct", variant: str = "published", dtype: str = "float32"
) -> tuple[Checkpoint, str]:
    checkpoint = build(family, geometry(preset), variant)
    return checkpoint, write_checkpoint(checkpoint, directory, seed=0, dtype=dtype)


def _read(directory: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            tensors |= {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118
    return tensors


@pytest.mark.parametrize("family", FAMILIES)
def test_the_real_library_reads_every_tensor_with_its_shape(family: str, tmp_path: Path) -> None:
    checkpoint, _ = _written(family, tmp_path / "base")
    tensors = _read(tmp_path / "base")

    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {s.key: s.shape for s in checkpoint.tensors}
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert all(bool(tensor.any()) for tensor in tensors.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_index_names_each_tensor_s_shard_and_the_total_size(family: str, tmp_path: Path) -> None:
    _written(family, tmp_path / "base")
    index = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())
    total = 0
    for name in set(index["weight_map"].values()):
        with safe_open(tmp_path / "base" / name, framework="pt") as shard:
            keys = set(shard.keys())
            total += sum(shard.get_tensor(key).nbytes for key in keys)
        assert keys == {key for key, where in index["weight_map"].items() if where == name}

    assert index["metadata"]["total_size"] == total


@pytest.mark.parametrize("family", ["qwen3_moe", "glm4_moe", "deepseek_v3"])
def test_experts_of_one_layer_lie_in_different_shards(family: str, tmp_path: Path) -> None:
    checkpoint, _ = _written(family, tmp_path / "base")
    weight_map = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())["weight_map"]
    for layer in checkpoint.layers_with_experts:
        shards = {
            weight_map[f"model.layers.{layer}.mlp.experts.{e}.gate_proj.weight"] for e in range(checkpoint.num_experts)
        }

        assert len(shards) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_many_has_numbers_that_sort_otherwise_as_text_and_lies_in_one_file(family: str, tmp_path: Path) -> None:
    checkpoint, _ = _written(family, tmp_path / "base", preset="many")
    files = sorted(path.name for path in (tmp_path / "base").iterdir())
    layers = {int(spec.key.split("layers.")[1].split(".")[0]) for spec in checkpoint.tensors if ".layers." in spec.key}

    assert [name for name in files if "safetensors" in name] == ["model.safetensors"]
    assert len(checkpoint.layers_with_experts) >= 11
    assert layers >= set(range(12))
    assert checkpoint.num_experts == 12
    assert _read(tmp_path / "base").keys() == {spec.key for spec in checkpoint.tensors}


def test_what_each_family_is_about_is_there() -> None:
    keys = {
        family: {spec.key for spec in build(family, geometry("distinct"), "published").tensors} for family in FAMILIES
    }

    assert "model.layers.0.mlp.gate_proj.weight" in keys["glm4_moe"], "a leading dense layer"
    assert "model.layers.1.mlp.shared_experts.up_proj.weight" in keys["deepseek_v3"], "a shared expert"
    assert "model.layers.1.self_attn.kv_a_proj_with_mqa.weight" in keys["deepseek_v3"], "latent attention"
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in keys["glm4_moe"], "a correction bias"
    assert "model.layers.3.eh_proj.weight" in keys["deepseek_v3"] & keys["glm4_moe"], "a prediction layer"
    assert "model.language_model.layers.0.linear_attn.in_proj_qkv.weight" in keys["qwen3_5_moe"], "linear attention"
    assert "model.language_model.layers.1.self_attn.q_proj.weight" in keys["qwen3_5_moe"], "full attention"
    assert "model.language_model.layers.0.mlp.experts.gate_up_proj" in keys["qwen3_5_moe"], "fused experts on disk"
    assert "mtp.fc.weight" in keys["qwen3_5_moe"], "a prediction module"


def test_deepseek_routes_by_groups() -> None:
    config = build("deepseek_v3", geometry("distinct"), "published").config

    assert config["n_group"] > config["topk_group"] > 1
    assert config["n_routed_experts"] % config["n_group"] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_no_linear_of_the_distinct_geometry_is_square_or_the_transpose_of_another_expert_shape(family: str) -> None:
    specs = build(family, geometry("distinct"), "published").tensors
    matrices = [spec.shape[-2:] for spec in specs if len(spec.shape) >= 2 and spec.module is not None]
    experts = {spec.shape[-2:] for spec in specs if spec.kind == "expert"}

    assert all(out != inp for out, inp in matrices)
    # gate_proj and up_proj are the transpose of down_proj by definition; on fused experts 2I tells them apart.
    assert experts <= {(80, 48), (40, 48), (48, 40)}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_hold_what_their_names_say(preset: str) -> None:
    g = geometry(preset)
    claims = {
        "distinct": len({g.hidden, g.moe_intermediate, 2 * g.moe_intermediate, g.dense_intermediate, g.vocab}) == 5,
        "square-gate-up": 2 * g.moe_intermediate == g.hidden,
        "square-down": g.moe_intermediate == g.hidden,
        "narrow": 2 * g.moe_intermediate < g.hidden,
        "single": g.num_experts == 1,
        "blocks": g.hidden % 64 == 0 == g.moe_intermediate % 64 and g.hidden != g.moe_intermediate,
        "many": g.layers is not None and min(g.layers, g.num_experts) > 10 and g.shards == 1,
    }

    assert claims[preset]
    assert g.rank >= 2
    assert preset == "single" or g.num_experts >= 4


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_make_every_linear_quantisable(family: str) -> None:
    for spec in build(family, geometry("blocks"), "published").tensors:
        # in_proj_a and in_proj_b have a row per value head: too few to pack, and left in 16 bits by every quantiser.
        # Routers, and the gate of a shared expert, are never quantised.
        few = spec.key.endswith(("in_proj_a.weight", "in_proj_b.weight"))
        if spec.module is None or spec.kind in NEVER_QUANTISED or few:
            continue

        assert spec.shape[-1] % 64 == 0, spec.key
        assert spec.shape[-2] % 32 == 0, spec.key


def test_bf16_stores_bf16_and_leaves_router_biases_alone(tmp_path: Path) -> None:
    _written("glm4_moe", tmp_path / "base", dtype="bf16")
    tensors = _read(tmp_path / "base")
    other = {key: tensor.dtype for key, tensor in tensors.items() if tensor.dtype != torch.bfloat16}

    assert other
    assert all(key.endswith("e_score_correction_bias") and dtype == torch.float32 for key, dtype in other.items())
    assert json.loads((tmp_path / "base" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_the_same_seed_gives_the_same_sha256_and_another_seed_another(tmp_path: Path) -> None:
    checkpoint, first = _written("qwen3_moe", tmp_path / "a")
    _, again = _written("qwen3_moe", tmp_path / "b")
    other = write_checkpoint(checkpoint, tmp_path / "c", seed=1, dtype="float32")

    assert first == again != other


@pytest.mark.parametrize("family", FAMILIES)
def test_the_published_bytes_are_pinned(family: str, tmp_path: Path) -> None:
    """The same in every stack: an integration test holds what stacks report against these."""
    found = _written(family, tmp_path)[1][:16]

    assert PINNED.get(family) == found, f'pin the new family\'s bytes, a line of PINNED above: "{family}": "{found}",'


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_differ_in_names_and_layout_only(variant: str) -> None:
    def parameters(name: str) -> int:
        return sum(spec.count for spec in build("qwen3_5_moe", geometry("distinct"), name).tensors)

    checkpoint = build("qwen3_5_moe", geometry("distinct"), variant)
    prefix = "model.layers" if variant == "text-prefix" else "model.language_model.layers"

    assert parameters(variant) == parameters("published")
    assert all(spec.key.startswith(prefix) for spec in checkpoint.tensors if spec.module and spec.kind not in ENDS)
    assert ("text_config" in checkpoint.config) == (variant == "nested-config")
    assert any(spec.expert is not None for spec in checkpoint.tensors if spec.module) == (variant == "per-expert")


def test_a_variant_that_a_family_is_not_published_in_is_refused() -> None:
    with pytest.raises(VariantNotOfferedError, match="per-expert"):
        build("qwen3_moe", geometry("distinct"), "per-expert")


def test_a_tied_checkpoint_has_no_head_and_says_so(tmp_path: Path) -> None:
    _written("qwen3_moe", tmp_path / "tied", variant="tied")
    tied, published = (build("qwen3_moe", geometry("distinct"), name) for name in ("tied", "published"))

    assert {s.key for s in published.tensors} - {s.key for s in tied.tensors} == {"lm_head.weight"}
    assert "lm_head.weight" not in _read(tmp_path / "tied")
    assert json.loads((tmp_path / "tied" / "config.json").read_text())["tie_word_embeddings"] is True
    assert published.config["tie_word_embeddings"] is False
