"""The router beside attention: a Linear in Qwen3 of transformers 4, elsewhere a module with a parameter of its own.

Which experts see a token changes while it is trained, so gaps between choices are those of the router with its LoRA.
"""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(summary="attention and the router", kinds=("attention", "router"), steps=10, learning_rate=3e-2)
