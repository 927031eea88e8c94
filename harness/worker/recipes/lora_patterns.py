"""Ranks and alphas by name, with rank-stabilised scaling: most pairs are scaled by a number of their own.

A pattern is a regular expression for the end of a name, from a dot on (``peft.utils.other.get_pattern_key``). The name
is the module's, or the parameter's where a parameter is targeted. So what a pattern means depends on the stack:
``mlp.down_proj`` is the dense MLP's, but not where that is targeted as ``mlp.down_proj.weight``, and experts are fused
or Linears. No two patterns match one name: PEFT takes the first that does, and saves them in another order
(docs/findings/peft-pattern-order.md).
"""

from harness.worker.recipes.recipe import Recipe

RECIPE = Recipe(
    summary="as `lora`, with `rank_pattern`, `alpha_pattern` and `use_rslora`",
    kinds=("attention", "expert", "shared_expert", "dense"),
    rank_pattern={"(q_proj|q_b_proj)": 5, r"experts\.gate_up_proj": 2, r"experts\.\d+\.up_proj": 2},
    alpha_pattern={
        "o_proj": 9,
        r"experts\.down_proj": 4,
        r"experts\.\d+\.down_proj": 3,
        r"(mlp|shared_expert|shared_experts)\.down_proj": 2,
    },
    use_rslora=True,
)
