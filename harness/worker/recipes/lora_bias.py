"""Attention with the biases of its Linears, which are trained whole (``bias="lora_only"``).

GLM-4.5 has some, of queries, keys and values. The others are published without: there PEFT is asked for biases and
finds none, and nothing may come of it.
"""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary='attention, and the biases of its Linears where it has some (`bias="lora_only"`)',
    kinds=("attention",),
    bias="lora_only",
)
