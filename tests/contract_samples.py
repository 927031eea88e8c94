"""A cell that shows all it must, derived from the contract.

``tests/unit/contract`` holds the contract against a literal list.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from harness.contract.checks import needed
from harness.contract.facts import CellFacts
from harness.contract.stages import WORKER_STAGES
from harness.faults import Facts, applicable_controls
from harness.matrix.cell import Cell

FACTS = CellFacts(kinds=("attention", "expert"), quantized=False, fused_experts=True)
CONTROLS = applicable_controls(
    Facts(dtype="float32", quantized=False, num_experts=None, rank=3, io_layout=None, b_packing=None)
)
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
        "adapter": {"num_experts": None, "rank": 3},
        "merge": {"attempted": 6, "applied": 6, "engine_applied": 6},
        "controls": [{"name": name, "rejected": True, "by": ["applied", "kl"], "value": 0.5} for name in CONTROLS],
        "running": None,
        "done": True,
    }
