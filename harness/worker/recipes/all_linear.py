"""Every Linear but the head, as PEFT promises. On transformers 4 that includes the routed experts.

PEFT means them on transformers 5 too, where they are no Linears (peft#3232): docs/findings/names-of-experts.md.
"""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary='`target_modules="all-linear"`',
    kinds=("attention", "expert", "shared_expert", "dense", "router", "other"),
    target_modules="all-linear",
)
