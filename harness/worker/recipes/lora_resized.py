"""A vocabulary that is resized before a LoRA of attention is attached, as for tokens that are added.

PEFT then saves embeddings and head beside it, though nothing trains them. Whoever loads the adapter has to resize the
vocabulary first.
"""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="attention, on a vocabulary that was resized (`resize_token_embeddings`)",
    kinds=("attention",),
    new_tokens=5,
)
