"""Every code of the quantised formats becomes the value that was published for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from format_samples import Numbers, merged, pair, write_adapter, write_base
from published_codes import FP4, NF4

Q, O_PROJ = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"


def dequantised(folder: Path, weight: dict[str, torch.Tensor], **settings: bool) -> torch.Tensor:
    """A quantised o_proj as a merge writes it that changes only q_proj, which is stored plain."""
    numbers = Numbers()
    base = write_base(
        folder / "base",
        {f"{Q}.weight": numbers(7, 6), **weight},
        quantization_config={"quant_method": "bitsandbytes", **settings},
    )
    write_adapter(folder / "adapter", pair(numbers, Q, 7, 6))
    found, _ = merged(base, folder / "adapter", folder / "out", dtype="float32", base_as="quantized")
    return found[f"{O_PROJ}.weight"]


@pytest.mark.parametrize(("kind", "published"), [("nf4", NF4), ("fp4", FP4)])
def test_sixteen_codes_of_four_bits(tmp_path: Path, kind: str, published: tuple[float, ...]) -> None:
    """Codes 0 to 15 four times over in each of two rows, whose blocks have the scales 1 and 0.5."""
    pairs = [high << 4 | high + 1 for high in range(0, 16, 2)]
    state = {"quant_type": kind, "blocksize": 64, "dtype": "float32", "shape": [2, 64]}
    key = f"{O_PROJ}.weight"
    weight = {
        key: torch.tensor(pairs * 8, dtype=torch.uint8).reshape(-1, 1),
        f"{key}.absmax": torch.tensor([1.0, 0.5]),
        f"{key}.quant_map": torch.tensor(published),
        f"{key}.quant_state.bitsandbytes__{kind}": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }

    found = dequantised(tmp_path, weight, load_in_4bit=True)

    row = torch.tensor(published).repeat(4)
    assert torch.equal(found, torch.stack([row, 0.5 * row]))


def test_a_code_of_eight_bits_is_a_127th_of_its_rows_scale(tmp_path: Path) -> None:
    weight = {
        f"{O_PROJ}.weight": torch.tensor([[127, -127, 64, 0], [1, -1, 100, -32]], dtype=torch.int8),
        f"{O_PROJ}.SCB": torch.tensor([2.0, 12.7]),
        f"{O_PROJ}.weight_format": torch.tensor(0, dtype=torch.uint8),
    }

    found = dequantised(tmp_path, weight, load_in_8bit=True)

    torch.testing.assert_close(found, torch.tensor([[2.0, -2.0, 128 / 127, 0.0], [0.1, -0.1, 10.0, -3.2]]))
