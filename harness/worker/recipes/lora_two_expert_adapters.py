"""As ``lora-two-adapters``, and both adapters have the routed experts: each gets two deltas.

PEFT puts the deltas of several adapters before a parameter by another way than that of one alone
(``ParamWrapper._activate_lora``, 0.21.2). Up to PEFT 0.19 one adapter of a model may target parameters.
"""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="attention, routed experts, on top of an adapter of both that is not trained any more",
    kinds=("attention", "expert"),
    frozen=("attention", "expert"),
)
