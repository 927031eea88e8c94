"""Embeddings and head beside attention. Beside such a LoRA PEFT saves these weights of the base too.

TRL 1.16 trains no LoRA on the head, and says so: ``lora-embeddings`` does without.
"""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(summary="attention, embeddings and `lm_head`", kinds=("attention", "embedding", "head"))
