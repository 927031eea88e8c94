"""Run in a stack's environment: a cell, one of whose experts forwards reads the weights past the LoRA.

Arguments: the project's root, and a request file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from harness.worker.request import read_request
from harness.worker.run import run_cell


def past_the_lora(experts: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
    """Multiply by the parameters as they were before PEFT's turn, as a kernel does that keeps its own pointers."""

    class Plain:
        """The experts module with the stored weights in place of those that are computed."""

        def __getattr__(self, name: str) -> Any:
            stored = getattr(experts, "parametrizations", {})
            return stored[name].original if name in stored else getattr(experts, name)

    return ALL_EXPERTS_FUNCTIONS["grouped_mm"](Plain(), hidden_states, top_k_index, top_k_weights)


ALL_EXPERTS_FUNCTIONS["batched_mm"] = past_the_lora  # under a name that 5.5.0 accepts too
run_cell(read_request(Path(sys.argv[2])))
