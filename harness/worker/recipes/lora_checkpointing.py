"""``lora`` as memory allows it: layers are computed again in the backward pass, and a step is taken in two batches."""

from dataclasses import replace

from harness.worker.recipes.lora import RECIPE as LORA
from harness.worker.recipes.recipe import Recipe

RECIPE: Recipe = replace(
    LORA,
    summary="as `lora`, with gradient checkpointing, each step in two batches",
    checkpointing=True,
    accumulation=2,
    max_grad_norm=1e6,
)
