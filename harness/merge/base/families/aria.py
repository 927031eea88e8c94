"""aria: fused experts (num_experts, in, out), called ``fc1.weight`` and ``fc2.weight`` on disk.

transformers 5.x marks the module with ``is_transposed``, so PEFT from 0.19.1 on gives lora_A the input features. An
adapter does not record by which transformers it was made.
"""

from __future__ import annotations

from harness.merge.base.families import Family

FAMILY = Family(
    model_types=("aria", "aria_text"),
    renames=(
        (r"\.mlp\.experts\.fc1\.weight$", ".mlp.experts.gate_up_proj"),
        (r"\.mlp\.experts\.fc2\.weight$", ".mlp.experts.down_proj"),
    ),
    transposed=True,
    layout_by_version="before-0.19",
)
