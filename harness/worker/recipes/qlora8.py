"""QLoRA in 8 bits: one scale a row, rounding errors ten times smaller than those of 4 bits."""

from harness.worker.recipes.quantization import Quantization
from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="as `lora`, on a base in 8 bits, experts included",
    kinds=("attention", "expert", "shared_expert", "dense"),
    geometry="blocks",
    quantization=Quantization(code="int8"),
)
