"""Quantised bases: decoded values against decoders that go value by value in Python, and bases that are broken.

The encoders (``quantised_samples``) pack random codes, so that every code, scale and edge occurs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from format_samples import Numbers, config_of, exact, merged, pair, write_adapter, write_base
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_samples import QUICK
from quantised_samples import e4m3, eight_bit, four_bit, mxfp4
from safetensors.torch import load_file, save_file

from harness.merge import errors, plan_merge
from harness.merge.base.checkpoint import open_checkpoint
from harness.merge.base.codecs import codecs
from harness.merge.base.codecs.bnb_4bit import FP4
from harness.merge.base.weight import QuantisedSource
from harness.merge.base.weights import read_weights

Q, O_PROJ, EXPERTS = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.experts"


def decode(base: Path, key: str, first: int | None = None, last: int | None = None) -> torch.Tensor:
    """Rows of one weight by the codec, through plain file reads."""
    weights = read_weights(open_checkpoint(base))
    source = weights[key].source
    assert isinstance(source, QuantisedSource)
    tensors = load_file(base / "model.safetensors")

    def read(name: str, start: int, stop: int) -> bytearray:
        return bytearray(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()[start:stop])

    rows = prod(source.shape[:-1])
    return codecs()[source.codec].rows(source, read, first or 0, rows if last is None else last)


# --- bitsandbytes, 4 bits -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from(["nf4", "fp4"]),
    st.booleans(),
    st.sampled_from([4, 16, 64]),
    st.integers(0, 99),
    st.data(),
)
def test_four_bit_weights_decode_code_by_code(
    rows: int, columns: int, kind: str, nested: bool, blocksize: int, seed: int, data: st.DataObject
) -> None:
    tensors, values = four_bit(f"{Q}.weight", (rows, columns), seed=seed, kind=kind, nested=nested, blocksize=blocksize)
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first + 1, rows))
    with tempfile.TemporaryDirectory(dir=QUICK) as folder:
        base = write_base(Path(folder) / "b", tensors)

        assert np.array_equal(exact(decode(base, f"{Q}.weight", first, last)), values[first:last])


def test_the_fp4_table_is_twelfths() -> None:
    """Sign, two bits of exponent, one of mantissa, over twelve (bitsandbytes.functional.get_4bit_type)."""
    assert [round(12 * value, 4) for value in FP4] == [
        0,
        0.0625,
        8,
        12,
        4,
        6,
        2,
        3,
        0,
        -0.0625,
        -8,
        -12,
        -4,
        -6,
        -2,
        -3,
    ]


def test_values_are_rounded_to_the_dtype_that_training_saw(tmp_path: Path) -> None:
    tensors, values = four_bit(f"{Q}.weight", (8, 64), dtype="bfloat16")

    found = decode(write_base(tmp_path / "b", tensors), f"{Q}.weight")

    assert torch.equal(found, torch.tensor(values).to(torch.bfloat16).float())


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_a_four_bit_base_becomes_a_plain_one(tmp_path: Path, dtype: str | None) -> None:
    """The targeted weight gets its delta, the other is dequantised, scale tensors and the configuration go, the rest
    stays.
    """
    numbers = Numbers()
    tensors, values = four_bit(f"{Q}.weight", (7, 6), nested=True)
    others, other_values = four_bit(f"{O_PROJ}.weight", (6, 7), seed=1)
    norm = numbers(6).to(torch.bfloat16)
    settings_ = {"load_in_4bit": True, "quant_method": "bitsandbytes"}
    base = write_base(
        tmp_path / "b",
        {**tensors, "model.norm.weight": norm, **others},
        torch_dtype="bfloat16",
        quantization_config=settings_,
    )
    lora = pair(numbers, Q, 7, 6)
    write_adapter(tmp_path / "a", lora)

    found, report = merged(base, tmp_path / "a", tmp_path / "out", dtype=dtype, base_as="quantized", quantization="nf4")

    delta = 1.5 * exact(lora[f"{Q}.lora_B.weight"]) @ exact(lora[f"{Q}.lora_A.weight"])
    assert found.keys() == {f"{Q}.weight", f"{O_PROJ}.weight", "model.norm.weight"}
    wanted = torch.float32 if dtype else torch.bfloat16
    tolerance = 2**-20 if dtype else 2**-8
    assert found[f"{Q}.weight"].dtype == found[f"{O_PROJ}.weight"].dtype == wanted
    assert np.allclose(exact(found[f"{Q}.weight"]), values + delta, rtol=tolerance, atol=tolerance / 16)
    assert torch.equal(found[f"{O_PROJ}.weight"], torch.tensor(other_values).to(wanted))
    assert torch.equal(found["model.norm.weight"], norm)
    assert "quantization_config" not in config_of(tmp_path / "out")
    assert config_of(tmp_path / "out")["torch_dtype"] == ("float32" if dtype else "bfloat16")
    manifest = json.loads((tmp_path / "out" / "merge_manifest.json").read_text())
    assert (manifest["base_as"], manifest["quantization"]) == ("quantized", "nf4")
    assert manifest["dequantised"] == [f"{O_PROJ}.weight", f"{Q}.weight"]
    assert report.attempted == 1


# --- bitsandbytes, 8 bits -------------------------------------------------------------------------------------------


def test_eight_bit_weights_are_rows_over_127(tmp_path: Path) -> None:
    tensors, values = eight_bit(Q, (7, 6))
    numbers = Numbers()
    lora = pair(numbers, Q, 7, 6)
    write_adapter(tmp_path / "a", lora)
    base = write_base(tmp_path / "b", tensors, quantization_config={"load_in_8bit": True})

    found, _ = merged(base, tmp_path / "a", tmp_path / "out", quantization="int8")

    delta = 1.5 * exact(lora[f"{Q}.lora_B.weight"]) @ exact(lora[f"{Q}.lora_A.weight"])
    assert found.keys() == {f"{Q}.weight"}
    assert np.allclose(exact(found[f"{Q}.weight"]), values + delta, rtol=1e-6, atol=1e-6)
    assert np.allclose(exact(decode(base, f"{Q}.weight", 2, 5)), values[2:5], rtol=1e-6)


# --- FP8 ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(), (3,)]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 99),
    st.booleans(),
    st.data(),
)
def test_fp8_weights_decode_block_by_block(
    lead: tuple[int, ...], rows: int, columns: int, tall: int, wide: int, seed: int, single: bool, data: st.DataObject
) -> None:
    """Blocks cut short at both edges, 3D tensors, one scale for all."""
    random = np.random.default_rng(seed)
    shape = (*lead, rows, columns)
    codes = random.choice([code for code in range(256) if code & 127 != 127], shape)
    scales = random.random((1,) if single else (*lead, -(-rows // tall), -(-columns // wide))).astype(np.float32)
    values = np.empty(shape)
    for at in np.ndindex(*shape):
        scale = scales[0] if single else scales[(*at[:-2], at[-2] // tall, at[-1] // wide)]
        values[at] = np.float32(np.float32(e4m3(int(codes[at]))) * scale)
    key = f"{EXPERTS}.down_proj" if lead else f"{Q}.weight"
    tensors = {
        key: torch.tensor(codes, dtype=torch.uint8).view(torch.float8_e4m3fn),
        f"{key}_scale_inv": torch.tensor(scales),
    }
    total = prod(shape[:-1])
    first = data.draw(st.integers(0, total - 1))
    last = data.draw(st.integers(first + 1, total))
    with tempfile.TemporaryDirectory(dir=QUICK) as folder:
        base = write_base(
            Path(folder) / "b", tensors, quantization_config={"quant_method": "fp8", "weight_block_size": [tall, wide]}
        )

        assert np.array_equal(exact(decode(base, key, first, last)), values.reshape(total, columns)[first:last])


def test_an_fp8_base_merges_into_experts_stored_one_by_one(tmp_path: Path) -> None:
    numbers, random = Numbers(), np.random.default_rng(0)
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, np.ndarray] = {}
    for e in range(2):
        for leaf, shape in (("gate_proj", (4, 6)), ("up_proj", (4, 6)), ("down_proj", (6, 4))):
            key = f"{EXPERTS}.{e}.{leaf}.weight"
            codes, scale = random.integers(0, 120, shape), random.random((1, 1)).astype(np.float32)
            tensors |= {
                key: torch.tensor(codes, dtype=torch.uint8).view(torch.float8_e4m3fn),
                f"{key}_scale_inv": torch.tensor(scale),
            }
            values[key] = np.vectorize(e4m3)(codes) * scale
    tensors["model.layers.0.mlp.gate.weight"] = numbers(2, 6)
    base = write_base(
        tmp_path / "b",
        tensors,
        n_routed_experts=2,
        quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]},
    )
    lora = {f"{EXPERTS}.lora_A.weight": numbers(4, 6), f"{EXPERTS}.lora_B.weight": numbers(8, 4)}
    write_adapter(tmp_path / "a", lora, target_modules=None, target_parameters=["experts.gate_up_proj"])

    found, report = merged(base, tmp_path / "a", tmp_path / "out", dtype="float32")

    assert found.keys() == values.keys() | {"model.layers.0.mlp.gate.weight"}
    for e in range(2):
        delta = sum(
            1.5
            * np.outer(
                exact(lora[f"{EXPERTS}.lora_B.weight"])[:, k * 2 + e],
                exact(lora[f"{EXPERTS}.lora_A.weight"])[e * 2 + k],
            )
            for k in range(2)
        )
        for leaf, part in (("gate_proj", delta[:4]), ("up_proj", delta[4:]), ("down_proj", 0)):
            key = f"{EXPERTS}.{e}.{leaf}.weight"
            assert np.allclose(exact(found[key]), values[key] + part, rtol=1e-6, atol=1e-6), key
    assert report.attempted == 4


# --- MXFP4 ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 191), st.integers(1, 192))
def test_mxfp4_rows_decode_value_by_value(first: int, last: int) -> None:
    """Any run of rows, within one expert or across several."""
    blocks, scales, values = mxfp4(2, 96, 5)
    quantised = QuantisedSource(codec="mxfp4", parts={"blocks": "b", "scales": "s"}, shape=(2, 96, 5))
    raw = {"b": blocks.numpy().tobytes(), "s": scales.numpy().tobytes()}
    if first < last:
        found = codecs()["mxfp4"].rows(quantised, lambda key, start, stop: bytearray(raw[key][start:stop]), first, last)

        assert np.array_equal(exact(found), values.reshape(192, 5)[first:last])


def test_an_mxfp4_base_gets_its_deltas_the_way_round_it_is_held_in_memory(tmp_path: Path) -> None:
    numbers = Numbers()
    blocks, scales, values = mxfp4(2, 32, 12)
    down_blocks, down_scales, down_values = mxfp4(2, 32, 32, seed=1)
    experts = {
        f"{EXPERTS}.gate_up_proj_blocks": blocks, f"{EXPERTS}.gate_up_proj_scales": scales,
        f"{EXPERTS}.gate_up_proj_bias": numbers(2, 12),
    }  # fmt: skip
    base = write_base(
        tmp_path / "b",
        experts,
        model_type="gpt_oss",
        num_local_experts=2,
        torch_dtype="bfloat16",
        quantization_config={"quant_method": "mxfp4"},
    )
    lora = {f"{EXPERTS}.lora_A.weight": numbers(4, 32), f"{EXPERTS}.lora_B.weight": numbers(12, 4)}
    write_adapter(tmp_path / "a", lora, target_modules=None, target_parameters=["experts.gate_up_proj"])

    found, _ = merged(base, tmp_path / "a", tmp_path / "out", dtype="float32")

    for e in range(2):
        delta = sum(
            1.5
            * np.outer(
                exact(lora[f"{EXPERTS}.lora_A.weight"])[e * 2 + k],
                exact(lora[f"{EXPERTS}.lora_B.weight"])[:, k * 2 + e],
            )
            for k in range(2)
        )
        assert np.allclose(exact(found[f"{EXPERTS}.gate_up_proj"])[e], values[e] + delta, rtol=1e-6, atol=1e-5)
    assert found.keys() == {f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.gate_up_proj_bias"}
    assert down_values.shape == (2, 32, 32)
    assert down_blocks.shape[:3] == down_scales.shape


# --- bases that are broken, or not what was said --------------------------------------------------------------------


def refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], error: type[errors.MergeError], said: str, **config: object
) -> None:
    write_adapter(tmp_path / "a", pair(Numbers(), Q, 7, 6))

    with pytest.raises(errors.MergeError) as caught:
        merged(write_base(tmp_path / "b", tensors, **config), tmp_path / "a", tmp_path / "out")

    assert type(caught.value) is error, caught.value
    assert said in caught.value.message
    assert not (tmp_path / "out").exists()


Change = Callable[[dict[str, torch.Tensor]], object]


def state_with(**changes: object) -> Change:
    """Change the JSON in the quant_state tensor."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        key = f"{Q}.weight.quant_state.bitsandbytes__nf4"
        state = {**json.loads(bytes(tensors[key].tolist())), **changes}
        tensors[key] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    return change


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda t: t.pop(f"{Q}.weight.absmax"), errors.InconsistentCheckpointError, "absmax is missing"),
        (
            lambda t: t.pop(f"{Q}.weight.nested_quant_map"),
            errors.InconsistentCheckpointError,
            "nested_quant_map is missing",
        ),
        (
            lambda t: t.update({f"{Q}.weight": torch.zeros(5, 1, dtype=torch.uint8)}),
            errors.InconsistentCheckpointError,
            "42 4-bit",
        ),
        (
            lambda t: t.update({f"{Q}.weight.absmax": torch.zeros(9, dtype=torch.uint8)}),
            errors.InconsistentCheckpointError,
            "1 elements of U8",
        ),
        (
            lambda t: t.update({f"{Q}.weight.quant_map": torch.zeros(16)}),
            errors.UnsupportedBaseError,
            "not the table of nf4",
        ),
        (
            lambda t: t.update({f"{Q}.weight.quant_state.bitsandbytes__nf4": torch.zeros(70000, dtype=torch.uint8)}),
            errors.InconsistentCheckpointError,
            "no bitsandbytes quant_state",
        ),
        (
            lambda t: t.update({f"{Q}.weight.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8)}),
            errors.CorruptFileError,
            "not valid JSON",
        ),
        (state_with(shape=[0, 6]), errors.InconsistentCheckpointError, "shape"),
        (state_with(shape=[2**40, 2**40]), errors.InconsistentCheckpointError, "shape"),
        (state_with(shape="7x6"), errors.InconsistentCheckpointError, "shape"),
        (state_with(blocksize=0), errors.InconsistentCheckpointError, "blocksize"),
        (state_with(blocksize=True), errors.InconsistentCheckpointError, "blocksize"),
        (state_with(nested_blocksize=-1), errors.InconsistentCheckpointError, "nested_blocksize"),
        (state_with(nested_offset="x"), errors.UnsupportedBaseError, "offset"),
        (state_with(quant_type="int4"), errors.UnsupportedBaseError, "int4"),
        (state_with(dtype="float64"), errors.UnsupportedBaseError, "float64"),
    ],
)
def test_a_four_bit_weight_that_is_broken(
    tmp_path: Path, change: Change, error: type[errors.MergeError], said: str
) -> None:
    tensors, _ = four_bit(f"{Q}.weight", (7, 6), nested=True)
    change(tensors)

    refused(tmp_path, tensors, error, said)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda t: t.pop(f"{Q}.weight"), errors.InconsistentCheckpointError, "does not hold"),
        (lambda t: t.update({f"{Q}.SCB": torch.zeros(3)}), errors.InconsistentCheckpointError, "no 8-bit Linear"),
        (
            lambda t: t.update({f"{Q}.weight_format": torch.tensor(1, dtype=torch.uint8)}),
            errors.UnsupportedBaseError,
            "arrangement",
        ),
        (
            lambda t: t.update({f"{O_PROJ}.weight": torch.zeros(3, 3, dtype=torch.int8)}),
            errors.UnsupportedBaseError,
            "no format that is decoded",
        ),
    ],
)
def test_an_eight_bit_weight_that_is_broken(
    tmp_path: Path, change: Change, error: type[errors.MergeError], said: str
) -> None:
    tensors, _ = eight_bit(Q, (7, 6))
    change(tensors)

    refused(tmp_path, tensors, error, said)


def fp8(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8).view(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("tensors", "config", "error", "said"),
    [
        ({f"{Q}.weight_scale_inv": torch.ones(1, 1)}, [4, 4], errors.InconsistentCheckpointError, "does not hold"),
        (
            {f"{Q}.weight": fp8((7, 6)), f"{Q}.weight_scale_inv": torch.ones(2, 2)},
            None,
            errors.UnsupportedBaseError,
            "weight_block_size",
        ),
        (
            {f"{Q}.weight": fp8((7, 6)), f"{Q}.weight_scale_inv": torch.ones(2, 2)},
            [4, True],
            errors.UnsupportedBaseError,
            "weight_block_size",
        ),
        (
            {f"{Q}.weight": fp8((7, 6)), f"{Q}.weight_scale_inv": torch.ones(3, 2)},
            [4, 4],
            errors.InconsistentCheckpointError,
            "needs [2, 2]",
        ),
        (
            {f"{Q}.weight": fp8((7, 6)), f"{Q}.weight_scale_inv": torch.ones(2, 2).double()},
            [4, 4],
            errors.UnsupportedBaseError,
            "F64",
        ),
        (
            {f"{Q}.weight": fp8((7, 6)).view(torch.int8), f"{Q}.weight_scale_inv": torch.ones(2, 2)},
            [4, 4],
            errors.UnsupportedBaseError,
            "I8",
        ),
    ],
)
def test_an_fp8_weight_that_is_broken(
    tmp_path: Path, tensors: dict[str, torch.Tensor], config: object, error: type[errors.MergeError], said: str
) -> None:
    refused(tmp_path, tensors, error, said, quantization_config={"quant_method": "fp8", "weight_block_size": config})


def test_mxfp4_that_is_broken_or_of_another_model(tmp_path: Path) -> None:
    blocks, scales, _ = mxfp4(2, 32, 12)
    key = f"{EXPERTS}.gate_up_proj"

    refused(tmp_path, {f"{key}_blocks": blocks}, errors.InconsistentCheckpointError, "has no", model_type="gpt_oss")
    both = {f"{key}_blocks": blocks, f"{key}_scales": scales[:1]}
    refused(tmp_path, both, errors.InconsistentCheckpointError, "not MXFP4", model_type="gpt_oss")
    refused(
        tmp_path, {**both, f"{key}_scales": scales}, errors.UnsupportedBaseError, "only gpt_oss", model_type="other"
    )


def test_a_base_that_is_not_what_was_said(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", pair(Numbers(), Q, 7, 6))
    quantised = write_base(tmp_path / "q", four_bit(f"{Q}.weight", (7, 6))[0])
    plain = write_base(tmp_path / "b", {f"{Q}.weight": Numbers()(7, 6)})

    for base, options, said in (
        (quantised, {"base_as": "original"}, "stored quantised (nf4)"),
        (quantised, {"quantization": "fp4"}, "quantised as nf4, not as fp4"),
        (plain, {"base_as": "quantized"}, "not quantised"),
        (plain, {"quantization": "nf4"}, "not quantised"),
        (plain, {"quantization": "nf5"}, "unknown quantization 'nf5'"),
    ):
        with pytest.raises(errors.UsageError) as caught:
            plan_merge(base, tmp_path / "a", **options)  # type: ignore[arg-type]  # options by name
        assert said in caught.value.message
    assert plan_merge(quantised, tmp_path / "a", quantization="bnb_4bit").base_as == "quantized"


def test_parts_of_a_weight_in_several_shards(tmp_path: Path) -> None:
    tensors, values = four_bit(f"{Q}.weight", (7, 6), nested=True)
    base = write_base(tmp_path / "b", tensors)
    (base / "model.safetensors").unlink()
    names = {key: f"model-0000{i + 1}-of-0000{len(tensors)}.safetensors" for i, key in enumerate(sorted(tensors))}
    for key, name in names.items():
        save_file({key: tensors[key], f"model.extra.{name[:11]}": torch.zeros(1)}, base / name)
    extra = {f"model.extra.{name[:11]}": name for name in names.values()}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**names, **extra}}))
    write_adapter(tmp_path / "a", {key: torch.zeros_like(value) for key, value in pair(Numbers(), Q, 7, 6).items()})

    found, _ = merged(base, tmp_path / "a", tmp_path / "out")

    assert found.keys() == extra.keys() | {f"{Q}.weight"}
    assert np.array_equal(exact(found[f"{Q}.weight"]), values)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == found.keys()
