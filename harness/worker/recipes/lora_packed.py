"""``lora`` on sequences of several lengths, several in a row, which must not see each other."""

from dataclasses import replace

from harness.worker.recipes.lora import RECIPE as LORA
from harness.worker.recipes.recipe import Recipe

RECIPE: Recipe = replace(
    LORA,
    summary="as `lora`, on sequences of several lengths, packed into rows (`packing=True`)",
    texts="unequal",
    packing=True,
)
