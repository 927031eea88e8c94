"""QLoRA in 8 bits: one scale a row, rounding errors ten times smaller than those of 4 bits."""

from harness.worker.recipes.quantization import Quantization
from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="QLoRA, 8 bits: attention, routed experts, shared experts and dense MLP",
    kinds=("attention", "expert", "shared_expert", "dense"),
    geometry="blocks",
    quantization=Quantization(code="int8"),
)
