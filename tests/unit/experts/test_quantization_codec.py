"""What codes mean, by hand: a nibble, a scale of its block, and the scale's own code."""

from __future__ import annotations

import sys

import pytest
import torch
from published_codes import FP4, NF4

from harness.experts import UnknownSchemeError, UnpackableShapeError, WrongDecodeError
from harness.experts.quantization import codec
from harness.experts.quantization.codec import check_decode, check_packable, decode_by_definition
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
