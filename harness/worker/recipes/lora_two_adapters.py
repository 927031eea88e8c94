"""A second adapter, trained on top of a first one that stays as it is: both are active, both saved, both merged.

The first lies in a folder of its own below the second's, as ``save_pretrained`` of PEFT leaves them. It has attention
alone, because up to PEFT 0.19 one adapter of a model may target parameters.
"""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="as `lora`, on top of an adapter of attention that is not trained any more",
    kinds=("attention", "expert", "shared_expert", "dense"),
    frozen=("attention",),
)
