"""``lora`` on sequences of several lengths, padded by TRL's own collator."""

from dataclasses import replace

from harness.worker.recipes.lora import RECIPE as LORA
from harness.worker.recipes.recipe import Recipe

RECIPE: Recipe = replace(
    LORA,
    summary="as `lora`, on sequences of several lengths, padded",
    texts="unequal",
)
