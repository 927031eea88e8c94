"""Attention only: what most adapters in the wild target. A merge must then leave every expert's bytes alone."""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="attention, linear attention included",
    kinds=("attention",),
    steps=10,
    learning_rate=2e-2,  # at 5e-2 the wider layers of `blocks` move so far that float32's rounding shows
)
