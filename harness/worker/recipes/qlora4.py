"""QLoRA as most people run it: NF4 with double quantisation, and a LoRA on all that is quantised.

Everything is quantised that transformers or ``harness.experts`` can quantise.
"""

from harness.worker.recipes.quantization import Quantization
from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="as `lora`, on a base in 4 bits (NF4, double quantised), experts included",
    kinds=("attention", "expert", "shared_expert", "dense"),
    geometry="blocks",
    quantization=Quantization(code="nf4", double_quant=True),
)
