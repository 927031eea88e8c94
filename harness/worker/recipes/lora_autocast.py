"""Training in bfloat16 by autocast (``bf16=True``, which TRL 1.x does by itself), weights and LoRA in float32."""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="as `lora`, trained in bfloat16 by autocast (`bf16=True`)",
    kinds=("attention", "expert", "shared_expert", "dense"),
    autocast=True,
)
