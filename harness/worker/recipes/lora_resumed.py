"""``lora``, stopped on its way: a second trainer with a model of its own goes on from what the first one saved."""

from dataclasses import replace

from harness.worker.recipes.lora import RECIPE as LORA
from harness.worker.recipes.recipe import Recipe

RECIPE: Recipe = replace(
    LORA,
    summary="as `lora`, and once more from a checkpoint that was saved half way",
    resumed=True,
)
