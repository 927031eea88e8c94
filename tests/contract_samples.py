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

FACTS = CellFacts(kinds=("attention", "expert"), quantized=False, fused_experts=True)
ADAPTER = {"io_layout": "standard", "b_packing": "rank_major", "num_experts": 8, "rank": 3}
CONTROLS = applicable_controls(Facts.of(ADAPTER, dtype="float32", quantized=False))
"""What applies to such an adapter."""

REJECTED = [{"name": name, "rejected": True, "by": sorted(fault(name).noticed_by), "value": 0.5} for name in CONTROLS]
ALL_CHECKS = (
    *((check.name, check.stage) for check in needed(FACTS)),
    *((f"control:{name}", "controls") for name in CONTROLS),
)
"""Every check that a pass of such a cell needs, with the stage it belongs to."""


def plain_cell(recipe: str = "lora", **more: object) -> Cell:
    """Return a cell of a stack of made-up pins."""
    stack = {"transformers": "5.5.0", "peft": "0.19.1", "trl": "0.25.1", "pins": {"torch": "2.13.0"}}
    return Cell.model_validate({"family": "qwen3_moe", "recipe": recipe, "stack": stack, **more})


def complete_observation() -> dict[str, Any]:
    """Return what a worker writes of a cell that passes."""
    return {
        "stages": {name: {"ended": "completed", "seconds": 0.01, "reason": None} for name in WORKER_STAGES},
        "checks": [
            {"name": name, "stage": stage, "value": 1, "band": "any", "passed": True} for name, stage in ALL_CHECKS
        ],
        "facts": asdict(FACTS),
        "adapter": dict(ADAPTER),
        "merge": {"attempted": 6, "applied": 6, "engine_applied": 6},
        "controls": [dict(control) for control in REJECTED],
        "running": None,
        "done": True,
    }
