"""Everything a full fine-tune recipe would touch, the router apart."""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="attention, routed experts, shared experts, dense MLP",
    kinds=("attention", "expert", "shared_expert", "dense"),
)
