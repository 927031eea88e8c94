"""Attention and routed experts, and the adapter once more as transformers 4 has it: a pair for every expert's Linear.

Whoever trained on transformers 4 has such an adapter. PEFT 0.19 and later convert it while it is loaded on
transformers 5 (``peft.utils.transformers_weight_conversion``). Pairs begin by another rule than in the other recipes.
"""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="attention, routed experts; loaded again with a pair for every expert's Linear, too",
    kinds=("attention", "expert"),
    init_lora_weights="gaussian",
    per_expert=True,
)
