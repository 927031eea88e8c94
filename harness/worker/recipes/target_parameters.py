"""The fused experts by the ends of their names, as PEFT's documentation of ``target_parameters`` writes them."""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="`target_parameters` of the routed experts, by the ends of their names",
    kinds=("expert",),
    target_parameters=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    steps=10,
    learning_rate=3e-2,
)
