"""llama4: fused experts (num_experts, in, out) without the attribute ``is_transposed``.

PEFT therefore takes the last dimension, which is the output, for the input: what it calls the right layout today has
lora_A face the output features.
"""

from __future__ import annotations

from harness.merge.base.families import Family

FAMILY = Family(model_types=("llama4", "llama4_text"), transposed=True, standard_faces_input=False)
