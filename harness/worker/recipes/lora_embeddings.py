"""Embeddings beside attention.

An embedding is looked up and not multiplied with, so its pair has names and shapes of its own in a saved adapter.
"""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(summary="attention and embeddings", kinds=("attention", "embedding"))
