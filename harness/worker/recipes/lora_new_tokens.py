"""Tokens are added and learnt: the vocabulary is resized, and embeddings and head are trained whole."""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="as `lora-modules-to-save`, on a vocabulary that was resized (`resize_token_embeddings`)",
    kinds=("attention", "embedding", "head"),
    whole=("embedding", "head"),
    new_tokens=5,
)
