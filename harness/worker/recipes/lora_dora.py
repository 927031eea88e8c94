"""DoRA (arXiv 2402.09353): what a Linear makes of its inputs has a direction, which a LoRA moves, and a magnitude.

PEFT refuses it on parameters (``lora.ParamWrapper does not work with use_dora=True.``), so no expert has one. PEFT 0.19
and later on transformers 5 take ``target_modules`` named as projections of experts for the experts, whatever module is
meant. There dense MLPs and shared experts of the families concerned cannot have DoRA either, and get none
(docs/findings/peft-dense-dora.md). What got one stands in the result's facts.
"""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="attention, shared experts, dense MLP, by DoRA; the last two where PEFT allows it",
    kinds=("attention", "shared_expert", "dense"),
    steps=10,
    learning_rate=3e-2,
    use_dora=True,
)
