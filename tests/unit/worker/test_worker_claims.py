"""What an engine's manifest says of its inputs and of each tensor, held against the files by sums of our own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness.worker.stages.claims import Claim, claims_of_manifest, judge_claims
from harness.worker.stages.tensor_gate import MANIFEST, TensorReport

MEASURED = TensorReport(
    verdicts={"a.weight": "applied", "b.weight": "zero_delta"}, norms={"a.weight": 5.0, "b.weight": 0.0}
)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Return a base, an adapter and a merged directory whose manifest is true."""
    found = {name: tmp_path / name for name in ("base", "adapter", "merged")}
    for folder in found.values():
        folder.mkdir()
    save_file({"a.weight": torch.ones(2, 2)}, found["base"] / "model.safetensors")
    save_file({"lora": torch.ones(2)}, found["adapter"] / "adapter_model.safetensors")
    (found["adapter"] / "adapter_config.json").write_text("{}")
    shard = (found["base"] / "model.safetensors").read_bytes()
    header = shard[: 8 + int.from_bytes(shard[:8], "little")]
    digest = hashlib.sha256((found["adapter"] / "adapter_model.safetensors").read_bytes()).hexdigest()
    said = {
        "adapter": {"sha256": digest, "config_sha256": hashlib.sha256(b"{}").hexdigest()},
        "base": {
            "shards": [
                {"name": "model.safetensors", "size": len(shard), "header_sha256": hashlib.sha256(header).hexdigest()}
            ]
        },
        "rows": [
            {"key": "a.weight", "status": "applied", "delta_norm": 3.0},
            {"key": "a.weight", "status": "applied", "delta_norm": 4.0},
            {"key": "b.weight", "status": "zero_delta", "delta_norm": 0.0},
        ],
    }
    (found["merged"] / MANIFEST).write_text(json.dumps(said))
    return found


def untrue(places: dict[str, Path]) -> list[str]:
    claims = claims_of_manifest(places["merged"], base=places["base"], adapter=places["adapter"], measured=MEASURED)
    return [claim.what for claim in claims if not claim.true]


def test_a_true_manifest_says_nothing_that_is_not_so(places: dict[str, Path]) -> None:
    """Rows of one tensor's experts add up as squares do: 3 and 4 make 5."""
    assert untrue(places) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda said: said["adapter"].update(sha256="0" * 64), "sha256 of the adapter"),
        (lambda said: said["adapter"].pop("config_sha256"), "config_sha256 of the adapter"),
        (lambda said: said["base"]["shards"][0].update(size=1), "model.safetensors"),
        (lambda said: said["base"]["shards"].clear(), "shards of the base"),
        (lambda said: said["rows"][0].update(delta_norm=3.01), "delta_norm of a.weight"),
        (lambda said: said["rows"][0].update(delta_norm=None), "delta_norm of a.weight"),
        (lambda said: said["rows"][2].update(status="applied"), "status of b.weight"),
        (lambda said: said["rows"].pop(), "tensors with a delta"),
        (lambda said: said.pop("rows"), "tensors with a delta"),
    ],
)
def test_what_is_not_so_is_named(places: dict[str, Path], change: Any, what: str) -> None:
    said = json.loads((places["merged"] / MANIFEST).read_text())
    change(said)
    (places["merged"] / MANIFEST).write_text(json.dumps(said))

    assert untrue(places) == [what]


def test_where_there_is_no_manifest_nothing_is_claimed(places: dict[str, Path]) -> None:
    (places["merged"] / MANIFEST).unlink()

    assert untrue(places) == []


def test_a_judgement_counts_what_is_not_true_and_says_what_is() -> None:
    judged = judge_claims(
        [Claim(what="tensors changed", said=55, measured=56), Claim(what="x", said=1.0, measured=1.0)]
    )

    assert (judged.value, judged.passed) == (1, False)
    assert judged.detail == "tensors changed: 55 is claimed where 56 is so"
    assert judge_claims([]).passed
