"""granitemoe: fused experts called ``input_linear.weight`` and ``output_linear.weight``, the router ``router.layer``.

That is how they are stored by every release and called in memory up to transformers 5.5 at least; later ones call them
``experts.gate_up_proj``, ``experts.down_proj`` and ``router`` in memory.
"""

from __future__ import annotations

from harness.merge.base.families import Family

FAMILY = Family(
    model_types=("granitemoe", "granitemoeshared", "granitemoehybrid"),
    renames=(
        (r"\.mlp\.input_linear\.weight$", ".mlp.experts.gate_up_proj"),
        (r"\.mlp\.output_linear\.weight$", ".mlp.experts.down_proj"),
        (r"\.mlp\.router\.layer(?=\.|$)", ".mlp.router"),
    ),
)
