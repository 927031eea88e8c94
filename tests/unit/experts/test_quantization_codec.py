"""What codes mean, by hand: a nibble, a scale of its block, and the scale's own code."""

from __future__ import annotations

import sys

import pytest
import torch
from published_codes import FP4, NF4

from harness.experts import UnknownSchemeError, UnpackableShapeError, WrongDecodeError
from harness.experts.quantization import codec
from harness.experts.quantization import packed as packed_experts
from harness.experts.quantization.codec import check_decode, check_packable, decode_by_definition
from harness.experts.quantization.packed import PackedExperts
from harness.experts.quantization.scheme import Code, Scheme


def packed(high: int, low: int, table: tuple[float, ...] = NF4) -> dict[str, torch.Tensor]:
    """Two blocks of 64 weights: every even one has one code, every odd one another; scales 2 and 0.5."""
    codes = torch.full((64,), high << 4 | low, dtype=torch.uint8)
    return {"codes": codes, "absmax": torch.tensor([2.0, 0.5]), "map": torch.tensor(table)}


def test_the_high_nibble_comes_first_and_each_block_has_its_scale() -> None:
    weights = decode_by_definition(Scheme("nf4"), packed(12, 4), (2, 64))

    assert weights.shape == (2, 64)
    assert weights[0, :4].tolist() == pytest.approx([0.88141966, -0.56888276] * 2)  # 2 x 0.44070983, 2 x -0.28444138
    assert weights[1, :4].tolist() == pytest.approx([0.22035491, -0.14222069] * 2)


@pytest.mark.parametrize(("code", "published"), [("nf4", NF4), ("fp4", FP4)])
def test_each_code_means_what_was_published_for_it(code: Code, published: tuple[float, ...]) -> None:
    for high in range(16):
        weights = decode_by_definition(Scheme(code), packed(high, 15 - high, published), (2, 64))

        assert weights[1, :2].tolist() == pytest.approx([published[high] / 2, published[15 - high] / 2])


def test_double_quantised_scales_are_codes_times_a_scale_plus_an_offset() -> None:
    parts = packed(12, 4)
    parts |= {
        "absmax": torch.tensor([3, 1], dtype=torch.uint8),
        "nested_map": torch.linspace(0, 1, 256),
        "nested_absmax": torch.tensor([255.0]),
        "nested_offset": torch.tensor([0.5]),
    }
    weights = decode_by_definition(Scheme("nf4", double_quant=True), parts, (2, 64))

    assert weights[0, 0].item() == pytest.approx(0.44070983 * (3 + 0.5))
    assert weights[1, 1].item() == pytest.approx(-0.28444138 * (1 + 0.5))


def test_int8_is_a_code_times_a_scale_of_its_row_over_127() -> None:
    parts = {"codes": torch.tensor([[127, -64], [1, 0]], dtype=torch.int8), "scales": torch.tensor([0.5, 12.7])}

    weights = decode_by_definition(Scheme("int8"), parts, (2, 2))

    torch.testing.assert_close(weights, torch.tensor([[0.5, -64 * 0.5 / 127], [0.1, 0.0]]))


@pytest.mark.parametrize(("off", "caught"), [(0.0, False), (2**-8, False), (0.05, True), (float("nan"), True)])
def test_decodes_are_compared_within_the_rounding_of_their_dtype(
    monkeypatch: pytest.MonkeyPatch, off: float, caught: bool
) -> None:
    scheme, parts = Scheme("nf4"), packed(12, 4)
    kernel = decode_by_definition(scheme, parts, (2, 64)).bfloat16()
    kernel[1, 7] *= 1 + off
    monkeypatch.setattr(codec, "decode", lambda *_: kernel)
    monkeypatch.setitem(sys.modules, "bitsandbytes", type("Named", (), {"__version__": "0"}))

    if caught:
        with pytest.raises(WrongDecodeError, match=r"experts\[3\]: bitsandbytes 0 on cpu decodes 1 of 128 weights"):
            check_decode(scheme, parts, (2, 64), torch.bfloat16, "experts[3]")
    else:
        check_decode(scheme, parts, (2, 64), torch.bfloat16, "experts[3]")


def test_the_scales_of_a_run_are_those_of_each_expert_by_the_definition() -> None:
    """Experts of 300 blocks: each has nested blocks of 256 and of 44, and an offset, of its own."""
    seed = torch.Generator().manual_seed(0)
    table, count, blocks = torch.linspace(-1, 1, 256), 3, 300
    parts = {
        "codes": torch.zeros(count, blocks * 32, dtype=torch.uint8),
        "absmax": torch.randint(0, 256, (count, blocks), generator=seed, dtype=torch.uint8),
        "map": torch.ones(16),
        "nested_map": table,
        "nested_absmax": torch.rand(count, 2, generator=seed) + 1,
        "nested_offset": torch.tensor([[0.25], [0.5], [0.75]]),
    }

    found = codec.absmax_of_run(Scheme("nf4", double_quant=True), parts)

    assert found.shape == (count, blocks)
    for expert in range(count):
        for block in (0, 255, 256, 299):
            code, scale = int(parts["absmax"][expert, block]), parts["nested_absmax"][expert, block // 256]
            assert found[expert, block] == table[code] * scale + parts["nested_offset"][expert, 0]


@pytest.mark.parametrize("wrong", [None, 0, 2])
def test_the_first_run_of_a_shape_is_held_against_its_experts_one_by_one(
    monkeypatch: pytest.MonkeyPatch, wrong: int | None
) -> None:
    """One bit of one expert is off, in a kernel that is right for a single expert."""
    dense = torch.arange(4 * 2 * 64, dtype=torch.float32).reshape(4, 2, 64)
    experts = PackedExperts(Scheme("int8"), (4, 2, 64), {"codes": dense})
    single, several = [], []

    def kernel(_: Scheme, parts: codec.Parts, *__: object) -> torch.Tensor:
        several.append(len(parts["codes"]))
        made = parts["codes"].clone()
        if wrong is not None:
            made[wrong, 1, 63] = torch.nextafter(made[wrong, 1, 63], torch.tensor(torch.inf))
        return made

    monkeypatch.setattr(packed_experts, "decode_run", kernel)
    monkeypatch.setattr(codec, "decode", lambda _, parts, *__: single.append(1) or parts["codes"])
    monkeypatch.setattr(packed_experts, "_COMPARED", set())
    monkeypatch.setitem(sys.modules, "bitsandbytes", type("Named", (), {"__version__": "0"}))

    if wrong is not None:
        for _ in range(2):  # it is not taken for compared afterwards
            with pytest.raises(WrongDecodeError, match=r"0 on cpu decodes 3 experts of shape \(2, 64\) at once"):
                experts.run(slice(0, 3), torch.float32)
    else:
        for run in (slice(0, 3), torch.tensor([0, 3, 1]), slice(1, 3), slice(2, 4)):
            assert torch.equal(experts.run(run, torch.float32), dense[run])
        assert several == [3, 3, 2, 2]
        assert len(single) == 3 + 2, "the first run of three, the first of two"


@pytest.mark.parametrize(
    ("code", "shape", "dtype", "expected"),
    [
        ("nf4", (128, 64, 64), torch.bfloat16, 4),  # 8 KiB each
        ("nf4", (128, 64, 64), torch.float32, 2),
        ("int8", (128, 64, 64), torch.bfloat16, 2),  # float32 on the way
        ("nf4", (3, 64, 64), torch.bfloat16, 3),
        ("nf4", (128, 64, 512), torch.bfloat16, 1),
    ],
)
def test_a_run_is_as_many_experts_as_fit_and_at_least_one(
    monkeypatch: pytest.MonkeyPatch, code: Code, shape: tuple[int, int, int], dtype: torch.dtype, expected: int
) -> None:
    monkeypatch.setattr(packed_experts, "RUN_BYTES_ON_CPU", 4 * 64 * 64 * 2 + 1)

    assert PackedExperts(Scheme(code), shape, {"codes": torch.empty(0)}).run_length(dtype) == expected


@pytest.mark.parametrize("shape", [(4, 20, 24), (4, 64), (0, 64, 64), (4, 64, 64, 1)])
def test_shapes_that_cannot_be_packed_are_refused_by_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnpackableShapeError, match=r"^layer\.0"):
        check_packable(Scheme("fp4"), shape, "layer.0")


def test_int8_takes_rows_of_any_length() -> None:
    check_packable(Scheme("int8"), (4, 20, 24), "layer.0")


@pytest.mark.parametrize(("code", "double"), [("nf5", False), ("int8", True)])
def test_schemes_that_do_not_exist_are_refused(code: str, double: bool) -> None:
    with pytest.raises(UnknownSchemeError):
        Scheme(code, double_quant=double)  # type: ignore[arg-type]
