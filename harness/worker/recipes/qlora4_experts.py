"""QLoRA of the routed experts only: nothing else hides an expert delta that was dropped."""

from harness.worker.recipes.quantization import Quantization
from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="routed experts, on a base in 4 bits",
    kinds=("expert",),
    steps=10,
    learning_rate=3e-2,
    geometry="blocks",
    quantization=Quantization(code="nf4", double_quant=True),
)
