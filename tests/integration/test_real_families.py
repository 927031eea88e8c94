"""Every family and every adapter feature against the real packages.

One process a stack, over ``merge_families_cells`` and ``merge_quantised_cells``. The bands. Logits of the merged model
against the trained one: KL below 1e-9 nats (float32 gives 1e-12 at worst). Parameters against PEFT's own float32 merge:
1e-6 of the tensor's largest value, a few units in the last place. Both mean something only beside the controls: base
against trained, and base against PEFT's merge.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.cli.setup import load_setup
from harness.envs import ensure_environment

pytestmark = [pytest.mark.integration, pytest.mark.nightly, pytest.mark.timeout(1500)]

STACKS = (
    "tf4.57.6-peft0.19.1-trl0.25.1",
    "tf5.5.0-peft0.18.1-trl0.25.1",
    "tf5.5.0-peft0.19.1-trl0.25.1",
    "tf5.23.0-peft0.21.2-trl1.16.0",
)
KL_BAND, PARAMETER_BAND = 1e-9, 1e-6
SIGNAL = 1e-3

NOT_THERE = "module transformers has no attribute"
KNOWN = {
    "bias_lora_only": "the adapter has bias = 'lora_only', but not the trained biases",
    "two_adapters_fused": "only one LoRA adapter per model with `target_parameters` is allowed",
}
"""What PEFT before 0.20 cannot do.

It loses the biases, which the merge has to say, and has one set of fused targets a model.
"""


def _run(stack: str, script: str, out: Path) -> dict[str, dict[str, Any]]:
    """Run a script's cases in a stack's environment and return what they found."""
    declared = {entry.id: entry for entry in load_setup().config.declared}
    python = ensure_environment(declared[stack]).python
    package = Path(harness.__file__).parents[1]
    done = subprocess.run(
        [python, "-I", Path(__file__).with_name(script), package, out],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1", "HOME": str(out.parent)},
        stdin=subprocess.DEVNULL,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    results: dict[str, dict[str, Any]] = json.loads(out.read_text())
    return results


@pytest.mark.parametrize("stack", STACKS)
def test_merged_models_are_the_trained_ones(stack: str, tmp_path: Path) -> None:
    results = _run(stack, "merge_families_cells.py", tmp_path / "results.json")

    wrong: dict[str, object] = {}
    for name, result in results.items():
        error = result.get("error", "")
        if NOT_THERE in error or (name in KNOWN and KNOWN[name] in error and stack != STACKS[-1]):
            continue
        right = (
            not error
            and result["signal"] > SIGNAL
            and result["kl"] < KL_BAND
            and not result["missing"]
            and not result["unexpected"]
            and result.get("peft", 0) < PARAMETER_BAND
            and result.get("peft_control", 1) > SIGNAL
        )
        if not right:
            wrong[name] = error or result
    assert not wrong
    assert len(results) - sum("error" in result for result in results.values()) > 40


@pytest.mark.parametrize("stack", STACKS[:1] + STACKS[2:])
def test_quantised_bases_decode_to_what_the_libraries_decode(stack: str, tmp_path: Path) -> None:
    """LLM.int8 rounds activations as well, so that the model in memory is no closer to its own weights than this.

    FP8 loading needs triton or a GPU.
    """
    results = _run(stack, "merge_quantised_cells.py", tmp_path / "results.json")

    for name, result in results.items():
        if name == "fp8" and any(word in result.get("error", "") for word in ("triton", "No GPU")):
            continue
        assert "error" not in result, (name, result)
        assert result["tensors"] > 0
        assert not result["differ_from_theirs"], name
        assert not result["differ_by_hand"], name
        assert not result["left"], name
        assert result["kl"] < (5e-6 if name in {"int8", "nf4_double_bf16"} else KL_BAND), name
        assert result["kl"] < result["signal"] / 50, name
