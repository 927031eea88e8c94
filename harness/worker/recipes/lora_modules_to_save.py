"""Embeddings and head trained whole beside a LoRA on attention: what is written where tokens are new.

They are saved whole too, and replace the base's.
"""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="attention; embeddings and `lm_head` whole (`modules_to_save`)",
    kinds=("attention", "embedding", "head"),
    whole=("embedding", "head"),
)
