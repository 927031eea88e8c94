"""The list of names that tutorials have. Transformers 5 has routed experts that are no modules of such names.

What PEFT makes of it hangs on its release and on the family: docs/findings/names-of-experts.md.
"""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="`target_modules` by name: `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`",
    kinds=("attention", "expert", "shared_expert", "dense"),
    target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
