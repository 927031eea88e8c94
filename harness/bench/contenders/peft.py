"""PEFT as most people use it: load the model in the checkpoint's dtype, load the adapter, ``merge_and_unload``,
``save_pretrained``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.bench.durable import sync_tree

TITLE = "PEFT"
VERSIONED = ("peft", "transformers", "torch")


def python(log: Callable[[str], None]) -> Path:
    """Return the interpreter of the first declared stack, made now if it was not there.

    Raises:
        HarnessError: the environment cannot be made.
    """
    from harness.bench.stacks import declared_python

    return declared_python(log)


def load() -> dict[str, str]:
    """Import everything that merging imports, the model's own module included."""
    import peft
    import torch
    import transformers
    from transformers import AutoModelForCausalLM
    from transformers.models.qwen3_moe import modeling_qwen3_moe

    assert AutoModelForCausalLM is not None and modeling_qwen3_moe is not None  # noqa: S101, PT018 - both are lazy
    return {"peft": peft.__version__, "transformers": transformers.__version__, "torch": torch.__version__}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Merge."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(request["base"], dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, request["adapter"]).merge_and_unload()
    merged.save_pretrained(request["out"])
    sync_tree(Path(request["out"]))
    return {}
