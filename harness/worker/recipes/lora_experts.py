"""Routed experts only: nothing else hides an expert delta that was dropped."""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(summary="routed experts", kinds=("expert",), steps=10, learning_rate=3e-2)
