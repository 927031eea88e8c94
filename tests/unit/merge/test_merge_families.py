"""How families store and call their experts: every layout, with lora_A facing either side, against deltas worked out
element by element.

The definition used here is PEFT's (``ParamWrapper.get_delta_weight``), spelled out: with the parameter (E, p, q) as it
is in memory, lora_A faces q and delta[e] = B_e A_e, or it faces p and delta[e] = (B_e A_e)^T; column k * E + e of
lora_B is expert e's k-th.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from format_samples import Numbers, close, exact, merged, write_adapter, write_base
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_samples import QUICK

from harness.merge import errors, plan_merge
from harness.merge.base.families import PLAIN, families, family_of


@dataclass(frozen=True)
class Shape:
    """One way to store experts.

    ``module``: the experts module in memory; ``disk``: what one tensor on disk is called, by part or by parameter.
    """

    model_type: str
    module: str
    disk: str
    parts: tuple[str, str, str] | None = None
    transposed: bool = False
    fused: tuple[str, str] = ("gate_up_proj", "down_proj")
    count: str = "num_local_experts"


SHAPES = {
    "qwen3_moe": Shape(
        "qwen3_moe",
        "mlp.experts",
        "mlp.experts.{e}.{part}.weight",
        ("gate_proj", "up_proj", "down_proj"),
        count="num_experts",
    ),
    "mixtral": Shape("mixtral", "mlp.experts", "block_sparse_moe.experts.{e}.{part}.weight", ("w1", "w3", "w2")),
    "minimax_m2": Shape("minimax_m2", "mlp.experts", "block_sparse_moe.experts.{e}.{part}.weight", ("w1", "w3", "w2")),
    "unknown": Shape(
        "some_new_moe", "feed_forward.experts", "feed_forward.experts.{e}.{part}.weight", ("w1", "w3", "w2")
    ),
    "gemma4": Shape("gemma4_text", "experts", "experts.{part}", count="num_experts"),
    "granitemoe": Shape(
        "granitemoe",
        "block_sparse_moe.experts",
        "block_sparse_moe.{part}.weight",
        fused=("input_linear", "output_linear"),
    ),
    "gpt_oss": Shape("gpt_oss", "mlp.experts", "mlp.experts.{part}", transposed=True),
    "aria": Shape(
        "aria_text",
        "mlp.experts",
        "mlp.experts.{part}.weight",
        transposed=True,
        fused=("fc1", "fc2"),
        count="moe_num_experts",
    ),
    "llama4": Shape("llama4_text", "feed_forward.experts", "feed_forward.experts.{part}", transposed=True),
}


def parameters(shape: Shape, hidden: int, width: int) -> dict[str, tuple[int, int]]:
    """(p, q) of one expert of each parameter as it is in memory."""
    plain = {"gate_up_proj": (2 * width, hidden), "down_proj": (hidden, width)}
    return {name: (q, p) if shape.transposed else (p, q) for name, (p, q) in plain.items()}


def on_disk(shape: Shape, stem: str, parameter: str, whole: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(key, values) of a parameter (E, p, q) as the family stores it."""
    if shape.parts is None:
        name = shape.fused[0] if parameter == "gate_up_proj" else shape.fused[1]
        yield f"{stem}.{shape.disk.format(part=name)}", whole
        return
    names = shape.parts[:2] if parameter == "gate_up_proj" else shape.parts[2:]
    for e, expert in enumerate(whole):
        for part, rows in zip(names, np.split(expert, len(names)), strict=True):
            yield f"{stem}.{shape.disk.format(e=e, part=part)}", rows


def build(
    folder: Path,
    shape: Shape,
    *,
    count: int,
    rank: int,
    hidden: int,
    width: int,
    faces_last: bool,
    targets: tuple[str, ...],
    version: str | None,
    seed: int,
) -> dict[str, np.ndarray]:
    """Write base and adapter; return what every expert tensor on disk should be."""
    numbers = Numbers(seed)
    base: dict[str, torch.Tensor] = {"model.norm.weight": numbers(hidden)}
    lora: dict[str, torch.Tensor] = {}
    expected: dict[str, np.ndarray] = {}
    stem = "model.layers.0"
    for parameter, (p, q) in parameters(shape, hidden, width).items():
        whole = numbers(count, p, q)
        summed = exact(whole).copy()
        if parameter in targets:
            a, b = (q, p) if faces_last else (p, q)
            lora_A, lora_B = numbers(count * rank, a), numbers(b, count * rank)  # noqa: N806 - the field's names
            inner = ".base_layer" if parameter == "gate_up_proj" and len(targets) == 2 else ""
            lora[f"{stem}.{shape.module}{inner}.lora_A.weight"] = lora_A
            lora[f"{stem}.{shape.module}{inner}.lora_B.weight"] = lora_B
            for e in range(count):
                for k in range(rank):
                    product = np.outer(exact(lora_B)[:, k * count + e], exact(lora_A)[e * rank + k])
                    summed[e] += 3 / rank * (product if faces_last else product.T)
        base |= {
            key: torch.tensor(np.ascontiguousarray(values))
            for key, values in on_disk(shape, stem, parameter, whole.numpy())
        }
        expected |= dict(on_disk(shape, stem, parameter, summed))
    write_base(folder / "b", base, model_type=shape.model_type, **{shape.count: count})
    write_adapter(
        folder / "a",
        lora,
        r=rank,
        target_modules=None,
        target_parameters=[f"experts.{name}" for name in targets],
        peft_version=version,
    )
    return expected


def layout_name(name: str, *, faces_last: bool) -> str:
    """What the io layout is called: standard is what today's PEFT does with the module that transformers 5 has."""
    return "standard" if faces_last == (name not in {"gpt_oss", "aria"}) else "swapped"


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(SHAPES)),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([3, 4, 6]),
    st.sampled_from([3, 6, 2]),
    st.booleans(),
    st.sampled_from([("gate_up_proj", "down_proj"), ("gate_up_proj",), ("down_proj",)]),
    st.integers(0, 999),
)
def test_every_family_gets_its_deltas_where_it_stores_its_experts(
    name: str, count: int, rank: int, hidden: int, width: int, faces_last: bool, targets: tuple[str, ...], seed: int
) -> None:
    with tempfile.TemporaryDirectory(dir=QUICK) as place:
        folder = Path(place)
        expected = build(
            folder,
            SHAPES[name],
            count=count,
            rank=rank,
            hidden=hidden,
            width=width,
            faces_last=faces_last,
            targets=targets,
            version=None,
            seed=seed,
        )
        layout = layout_name(name, faces_last=faces_last)

        found, report = merged(folder / "b", folder / "a", folder / "out", io_layout=layout)

        assert report.to_json()["io_layout"] == {"value": layout, "by": "flag"}
        assert expected.keys() == found.keys() - {"model.norm.weight"}
        for key, values in expected.items():
            assert close(found[key], values), key


@pytest.mark.parametrize(
    ("name", "version", "faces_last"),
    [
        ("qwen3_moe", "0.18.1", False), ("qwen3_moe", "0.19.1", True), ("llama4", "0.18.1", False),
        ("llama4", "0.21.2", True),
        ("gpt_oss", "0.18.1", False),
    ],
)  # fmt: skip
def test_a_lone_square_parameter_is_settled_by_the_version_where_that_tells(
    tmp_path: Path, name: str, version: str, *, faces_last: bool
) -> None:
    expected = build(
        tmp_path,
        SHAPES[name],
        count=3,
        rank=2,
        hidden=4,
        width=4,
        faces_last=faces_last,
        targets=("down_proj",),
        version=version,
        seed=1,
    )

    found, report = merged(tmp_path / "b", tmp_path / "a", tmp_path / "out")

    assert report.to_json()["io_layout"] == {"value": layout_name(name, faces_last=faces_last), "by": "provenance"}
    assert all(close(found[key], values) for key, values in expected.items())


@pytest.mark.parametrize("version", ["0.19.0", "0.19.1", "0.21.2"])
def test_a_lone_square_parameter_of_gpt_oss_is_ambiguous_from_0_19_on(tmp_path: Path, version: str) -> None:
    """Whether the module has ``is_transposed`` depends on the transformers release, which no adapter records."""
    build(
        tmp_path,
        SHAPES["gpt_oss"],
        count=3,
        rank=2,
        hidden=4,
        width=4,
        faces_last=False,
        targets=("down_proj",),
        version=version,
        seed=1,
    )

    with pytest.raises(errors.AmbiguousLayoutError, match="would tell for this model"):
        plan_merge(tmp_path / "b", tmp_path / "a")


def test_gpt_oss_under_transformers_4_is_swapped_by_shape_whatever_the_version_says(tmp_path: Path) -> None:
    expected = build(
        tmp_path,
        SHAPES["gpt_oss"],
        count=2,
        rank=2,
        hidden=4,
        width=4,
        faces_last=True,
        targets=("gate_up_proj", "down_proj"),
        version="0.19.1",
        seed=2,
    )

    found, report = merged(tmp_path / "b", tmp_path / "a", tmp_path / "out")

    assert report.to_json()["io_layout"] == {"value": "swapped", "by": "shape"}
    assert all(close(found[key], values) for key, values in expected.items())


def test_granitemoe_as_older_releases_call_it(tmp_path: Path) -> None:
    """``input_linear.weight`` is a parameter of a module of its own, so nothing nests.

    The router is ``router.layer``.
    """
    numbers, stem = Numbers(), "model.layers.0.block_sparse_moe"
    base = {
        f"{stem}.input_linear.weight": numbers(2, 8, 6), f"{stem}.output_linear.weight": numbers(2, 6, 4),
        f"{stem}.router.layer.weight": numbers(2, 6),
    }  # fmt: skip
    lora = {
        f"{stem}.input_linear.lora_A.weight": numbers(4, 6), f"{stem}.input_linear.lora_B.weight": numbers(8, 4),
        f"{stem}.router.lora_A.weight": numbers(2, 6), f"{stem}.router.lora_B.weight": numbers(2, 2),
    }  # fmt: skip
    write_adapter(tmp_path / "a", lora, target_modules=None, target_parameters=["input_linear.weight", "router.weight"])

    found, report = merged(
        write_base(tmp_path / "b", base, model_type="granitemoe", num_local_experts=2), tmp_path / "a", tmp_path / "out"
    )

    expected = exact(base[f"{stem}.input_linear.weight"]).copy()
    for e in range(2):
        for k in range(2):
            column = exact(lora[f"{stem}.input_linear.lora_B.weight"])[:, k * 2 + e]
            expected[e] += 1.5 * np.outer(column, exact(lora[f"{stem}.input_linear.lora_A.weight"])[e * 2 + k])
    router = 1.5 * exact(lora[f"{stem}.router.lora_B.weight"]) @ exact(lora[f"{stem}.router.lora_A.weight"])
    assert close(found[f"{stem}.input_linear.weight"], expected)
    assert close(found[f"{stem}.router.layer.weight"], exact(base[f"{stem}.router.layer.weight"]) + router)
    assert {kind: counts.attempted for kind, counts in report.by_kind.items()} == {"expert": 1, "router": 1}


def test_linears_of_transformers_4_under_their_own_names(tmp_path: Path) -> None:
    """w1, w2 and w3 as modules, and the router of phimoe, which later releases call otherwise."""
    numbers, stem = Numbers(), "model.layers.0.block_sparse_moe"
    base = {
        f"{stem}.experts.{e}.{leaf}.weight": numbers(*shape)
        for e in range(2)
        for leaf, shape in (("w1", (4, 6)), ("w3", (4, 6)), ("w2", (6, 4)))
    }
    base[f"{stem}.gate.weight"] = numbers(2, 6)
    lora: dict[str, torch.Tensor] = {}
    for module, out, wide in (
        (f"{stem}.experts.1.w2", 6, 4),
        (f"{stem}.experts.0.w3", 4, 6),
        ("model.layers.0.mlp.router", 2, 6),
    ):
        lora |= {f"{module}.lora_A.weight": numbers(2, wide), f"{module}.lora_B.weight": numbers(out, 2)}
    write_adapter(tmp_path / "a", lora, target_modules=["experts.1.w2", "experts.0.w3", "mlp.router"])

    found, _ = merged(
        write_base(tmp_path / "b", base, model_type="phimoe", num_local_experts=2), tmp_path / "a", tmp_path / "out"
    )

    for module, key in (
        (f"{stem}.experts.1.w2", f"{stem}.experts.1.w2.weight"),
        (f"{stem}.experts.0.w3", f"{stem}.experts.0.w3.weight"),
        ("model.layers.0.mlp.router", f"{stem}.gate.weight"),
    ):  # fmt: skip
        product = 1.5 * exact(lora[f"{module}.lora_B.weight"]) @ exact(lora[f"{module}.lora_A.weight"])
        assert close(found[key], exact(base[key]) + product), key


def test_one_experts_lora_into_a_transposed_tensor_is_refused(tmp_path: Path) -> None:
    numbers, experts = Numbers(), "model.layers.0.mlp.experts"
    base = {f"{experts}.gate_up_proj": numbers(2, 6, 8), f"{experts}.down_proj": numbers(2, 4, 6)}
    write_base(tmp_path / "b", base, model_type="gpt_oss", num_local_experts=2)
    module = f"{experts}.0.gate_proj"
    write_adapter(
        tmp_path / "a",
        {f"{module}.lora_A.weight": numbers(2, 6), f"{module}.lora_B.weight": numbers(4, 2)},
        target_modules=["gate_proj"],
    )

    with pytest.raises(errors.UnsupportedAdapterError, match="stored transposed"):
        plan_merge(tmp_path / "b", tmp_path / "a")


@pytest.mark.parametrize(
    ("model_type", "gate_up", "down", "error", "said"),
    [
        ("new_moe", (2, 6, 8), (2, 4, 6), errors.UnsupportedBaseError, "stored transposed"),
        ("gpt_oss", (2, 8, 6), (2, 6, 4), errors.InconsistentCheckpointError, "do not belong together"),
        ("new_moe", (2, 8, 6), (2, 6, 5), errors.InconsistentCheckpointError, "do not belong together"),
    ],
)
def test_experts_that_are_not_the_way_round_that_is_known(
    tmp_path: Path,
    model_type: str,
    gate_up: tuple[int, ...],
    down: tuple[int, ...],
    error: type[errors.MergeError],
    said: str,
) -> None:
    numbers, experts = Numbers(), "model.layers.0.mlp.experts"
    write_base(
        tmp_path / "b",
        {f"{experts}.gate_up_proj": numbers(*gate_up), f"{experts}.down_proj": numbers(*down)},
        model_type=model_type,
    )
    lora = {f"{experts}.lora_A.weight": numbers(4, 6), f"{experts}.lora_B.weight": numbers(8, 4)}
    write_adapter(tmp_path / "a", lora, target_modules=None, target_parameters=["experts.gate_up_proj"])

    with pytest.raises(error, match=said):
        plan_merge(tmp_path / "b", tmp_path / "a")


def test_families_are_found_by_model_type_and_most_need_none() -> None:
    assert {"gpt_oss", "llama4", "llama4_text", "granitemoe", "phimoe", "gpt2"} <= set(families())
    assert family_of({"model_type": "qwen3_moe"}) is PLAIN
    assert family_of({"model_type": "llama4", "text_config": {"model_type": "llama4_text"}}).transposed
    assert family_of({"model_type": ["gpt_oss"]}) is PLAIN
    assert family_of({}) is PLAIN


def _fused_pair(
    numbers: Numbers, module: str, count: int, out: int, wide: int, rank: int = 2
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Return a pair in today's layout, and its deltas (count, out, wide), worked out element by element."""
    a, b = numbers(count * rank, wide), numbers(out, count * rank)
    deltas = np.zeros((count, out, wide))
    for e in range(count):
        for k in range(rank):
            deltas[e] += 1.5 * np.outer(exact(b)[:, k * count + e], exact(a)[e * rank + k])
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, deltas


def test_experts_without_a_gate_are_told_apart_by_the_peft_that_made_the_adapter(tmp_path: Path) -> None:
    """up_proj (4, 6) and down_proj (6, 4) are each other's transpose, so that no shape tells which is which."""
    numbers, stem = Numbers(), "model.layers.0.mixer.experts"
    base = {f"{stem}.{e}.{leaf}.weight": numbers(*shape) for e in range(2) for leaf, shape in (
        ("up_proj", (4, 6)), ("down_proj", (6, 4)),
    )}  # fmt: skip
    up, up_deltas = _fused_pair(numbers, f"{stem}.base_layer", 2, 4, 6)
    down, down_deltas = _fused_pair(numbers, stem, 2, 6, 4)
    targets = ["experts.up_proj", "experts.down_proj"]
    write_base(tmp_path / "b", base, model_type="nemotron_h", n_routed_experts=2)
    write_adapter(tmp_path / "a", up | down, target_modules=None, target_parameters=targets, peft_version="0.21.2")

    found, _ = merged(tmp_path / "b", tmp_path / "a", tmp_path / "out")

    for e in range(2):
        for leaf, deltas in (("up_proj", up_deltas), ("down_proj", down_deltas)):
            key = f"{stem}.{e}.{leaf}.weight"
            assert close(found[key], exact(base[key]) + deltas[e]), key

    write_adapter(tmp_path / "c", up | down, target_modules=None, target_parameters=targets, peft_version=None)
    with pytest.raises(errors.AdapterMismatchError, match="fits more than one"):
        plan_merge(tmp_path / "b", tmp_path / "c")


def test_gates_that_are_lost_are_no_experts_without_a_gate(tmp_path: Path) -> None:
    numbers, stem = Numbers(), "model.layers.0.mlp.experts"
    base = {f"{stem}.{e}.{leaf}.weight": numbers(*shape) for e in range(2) for leaf, shape in (
        ("up_proj", (4, 6)), ("down_proj", (6, 4)),
    )}  # fmt: skip
    write_base(tmp_path / "b", base, model_type="qwen3_moe", num_experts=2)
    down, _ = _fused_pair(numbers, stem, 2, 6, 4)
    write_adapter(tmp_path / "a", down, target_modules=None, target_parameters=["experts.down_proj"])

    with pytest.raises(errors.InconsistentCheckpointError, match="has only up_proj of gate_proj, up_proj"):
        plan_merge(tmp_path / "b", tmp_path / "a")


@pytest.mark.parametrize("idle", [1, 0])
def test_experts_that_do_nothing_have_rows_of_gate_and_up_alone(tmp_path: Path, idle: int) -> None:
    numbers, stem = Numbers(), "model.layers.0.mlp.experts"
    base = {f"{stem}.{e}.{leaf}.weight": numbers(4, 6) for e in range(3) for leaf in ("gate_proj", "up_proj")}
    base |= {f"{stem}.{e}.down_proj.weight": numbers(6, 4) for e in range(2)}
    write_base(tmp_path / "b", base, model_type="longcat_flash", n_routed_experts=2, zero_expert_num=idle)
    gate_up, deltas = _fused_pair(numbers, stem, 3, 8, 6)
    write_adapter(tmp_path / "a", gate_up, target_modules=None, target_parameters=["experts.gate_up_proj"])

    if not idle:  # the third expert is then one too many
        with pytest.raises(errors.InconsistentCheckpointError, match="should have 2 experts"):
            plan_merge(tmp_path / "b", tmp_path / "a")
        return
    found, _ = merged(tmp_path / "b", tmp_path / "a", tmp_path / "out")

    for e in range(3):
        whole = np.concatenate([exact(base[f"{stem}.{e}.{leaf}.weight"]) for leaf in ("gate_proj", "up_proj")])
        for leaf, rows in zip(("gate_proj", "up_proj"), np.split(whole + deltas[e], 2), strict=True):
            assert close(found[f"{stem}.{e}.{leaf}.weight"], rows)
