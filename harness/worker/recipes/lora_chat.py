"""``lora`` on conversations, which TRL renders by the chat template; only answers are trained on."""

from dataclasses import replace

from harness.worker.recipes.lora import RECIPE as LORA
from harness.worker.recipes.recipe import Recipe

RECIPE: Recipe = replace(
    LORA,
    summary="as `lora`, on the answers of conversations (`assistant_only_loss=True`)",
    texts="chats",
)
