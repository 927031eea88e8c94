"""QLoRA of the routed experts only: nothing else hides an expert delta that was dropped."""

from harness.worker.recipes.quantization import Quantization
from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="QLoRA, 4 bits: routed experts only",
    kinds=("expert",),
    steps=10,
    learning_rate=3e-2,
    geometry="blocks",
    quantization=Quantization(code="nf4", double_quant=True),
)
