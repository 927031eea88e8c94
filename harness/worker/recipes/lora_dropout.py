"""Dropout in front of lora_A while it is trained, and none of it afterwards.

PEFT refuses it on parameters (``lora.ParamWrapper does not work with lora_dropout != 0.``), so it reaches what DoRA
reaches (``lora_dora``).
"""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="attention, shared experts, dense MLP, with `lora_dropout`; the last two where PEFT allows it",
    kinds=("attention", "shared_expert", "dense"),
    steps=10,
    learning_rate=5e-2,
    dropout=0.1,
)
