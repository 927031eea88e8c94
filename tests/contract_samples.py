"""A cell that shows all it must, derived from the contract.

``tests/unit/contract`` holds the contract against a literal list.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from harness.contract.checks import needed
from harness.contract.facts import CellFacts
from harness.contract.stages import WORKER_STAGES
from harness.faults import Facts, applicable_controls, fault
from harness.matrix.cell import Cell

FACTS = CellFacts(kinds=("attention", "expert"), quantized=False, fused_experts=True, defined=True)
ADAPTER = {"io_layout": "standard", "b_packing": "rank_major", "num_experts": 8, "rank": 3}
CONTROLS = applicable_controls(Facts.of(ADAPTER, dtype="float32", quantized=False))
"""What applies to such an adapter."""

REJECTED = [
    {"name": name, "rejected": True, "by": sorted(fault(name).checks_of("compare")), "value": 0.5} for name in CONTROLS
]
ALL_CHECKS = (
    *((check.name, check.stage) for check in needed(FACTS)),
    *((f"control:{name}", "controls") for name in CONTROLS),
)
"""Every check that a pass of such a cell needs, with the stage it belongs to."""

PASSED = [
    {"name": name, "stage": stage, "value": 0.5, "band": "not <= 1e-09", "passed": True}
    if name.startswith("control:")
    else {
        "name": name,
        "stage": stage,
        "value": "6/6" if name in {"quantized", "attached", "applied", "applied_dequantized"} else 0,
        "band": "== 6/6" if name == "attached" else "all attempted" if name == "applied" else "<= 1e-09",
        "passed": True,
    }
    for name, stage in ALL_CHECKS
]
"""Each of them as a worker records it: six of six, or 0; of a control what was rejected."""
METRICS: dict[str, Any] = dict.fromkeys(
    (
        *("kl_trained_adapter", "kl_trained_base", "kl_trained_merged", "max_logprob_diff", "tensors_exact_fraction"),
        *("dtype_changes", "keys_missing", "files_missing"),
    ),
    0,
)
"""The same numbers where else they stand."""
TRAINING = {"loss": [2.5, 1.5]}
BASE_SHA256 = "ab" * 32


def plain_cell(recipe: str = "lora", **more: object) -> Cell:
    """Return a cell of a stack of made-up pins."""
    stack = {"transformers": "5.5.0", "peft": "0.19.1", "trl": "0.25.1", "pins": {"torch": "2.13.0"}}
    return Cell.model_validate({"family": "qwen3_moe", "recipe": recipe, "stack": stack, **more})


def complete_observation() -> dict[str, Any]:
    """Return what a worker writes of a cell that passes."""
    return {
        "stages": {name: {"ended": "completed", "seconds": 0.01, "reason": None} for name in WORKER_STAGES},
        "checks": [dict(check) for check in PASSED],
        "metrics": dict(METRICS),
        "training": dict(TRAINING),
        "base_sha256": BASE_SHA256,
        "device": "cpu",
        "facts": asdict(FACTS),
        "adapter": dict(ADAPTER),
        "merge": {"attempted": 6, "applied": 6, "engine_applied": 6},
        "controls": [dict(control) for control in REJECTED],
        "running": None,
        "done": True,
    }
