"""Only ``down_proj`` of the routed experts.

The adapter's keys alone do not say which of the two parameters it is.
"""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="`down_proj` of the routed experts",
    kinds=("expert",),
    expert_roles=("down_proj",),
    steps=10,
    learning_rate=3e-2,
)
