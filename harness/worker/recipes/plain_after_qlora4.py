"""A LoRA on a plain base, in a process that has loaded the same base in 4 bits before: it must not be quantised too."""

from dataclasses import replace

from harness.worker.recipes.lora_attention import RECIPE as SECOND
from harness.worker.recipes.qlora4 import RECIPE as FIRST

RECIPE = replace(
    SECOND,
    summary="as `lora-attention`, in a process that has loaded the base in 4 bits before",
    geometry="blocks",
    loaded_before=FIRST.quantization,
)
