"""The saver of unsloth-zoo, called at its public entry point, in an environment and a process of its own.

The model and the adapter are loaded as its users load them; it then reads the base's shards again and writes merged
ones (``unsloth_zoo.saving_utils.merge_and_overwrite_lora``, 2026.9.9). It asks for a GPU on import unless
``UNSLOTH_ZOO_DISABLE_GPU_INIT`` says otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.bench.durable import sync_tree

TITLE = "unsloth-zoo"
VERSIONED = ("unsloth_zoo", "peft", "transformers", "torch")
REQUIREMENTS = ("unsloth-zoo==2026.9.9",)


def python(log: Callable[[str], None]) -> Path:
    """Return the interpreter of its environment, made now if it was not there.

    Raises:
        HarnessError: the environment cannot be made, which includes that only a CUDA build of torch would fit.
    """
    from harness.envs.environment import ensure_requirements
    from harness.matrix.catalogue import read_catalogue
    from harness.matrix.config import load_config
    from harness.matrix.locate import find_config

    torch = load_config(find_config(None), read_catalogue()).declared[0].pins["torch"]
    return ensure_requirements((*REQUIREMENTS, f"torch=={torch}"), label="bench unsloth-zoo", log=log).python


def load() -> dict[str, str]:
    """Import everything that merging imports."""
    os.environ["UNSLOTH_ZOO_DISABLE_GPU_INIT"] = "1"
    import peft
    import torch
    import transformers
    import unsloth_zoo
    from transformers import AutoModelForCausalLM
    from transformers.models.qwen3_moe import modeling_qwen3_moe
    from unsloth_zoo.saving_utils import merge_and_overwrite_lora

    assert all((AutoModelForCausalLM, modeling_qwen3_moe, merge_and_overwrite_lora))  # noqa: S101 - two of them are lazy
    return {
        "unsloth_zoo": unsloth_zoo.__version__,
        "peft": peft.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Merge."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from unsloth_zoo.saving_utils import merge_and_overwrite_lora

    model = AutoModelForCausalLM.from_pretrained(request["base"], dtype=torch.bfloat16)
    merge_and_overwrite_lora(
        lambda name, **_: name,
        PeftModel.from_pretrained(model, request["adapter"]),
        save_directory=request["out"],
        save_method="merged_16bit",
        output_dtype=torch.bfloat16,
    )
    sync_tree(Path(request["out"]))
    return {}
