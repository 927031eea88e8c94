"""QLoRA as most people run it: NF4 with double quantisation, everything quantised that transformers or ``harness.experts`` can quantise.

Shared experts and dense MLPs are quantised and get no LoRA: PEFT 0.19 and later reach them only through ``target_parameters`` (see ``stages.attach``), which
cannot target a packed weight.
"""

from harness.worker.recipes.quantization import Quantization
from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="QLoRA, 4 bits (NF4, double quantised): attention and routed experts",
    kinds=("attention", "expert"),
    geometry="blocks",
    quantization=Quantization(code="nf4", double_quant=True),
)
