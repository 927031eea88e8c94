"""gpt_oss: fused experts (num_experts, in, out) with gate and up rows interleaved, and biases.

transformers 5.x marks the module with ``is_transposed``, 4.x does not. So PEFT from 0.19 on gives lora_A the input
features under the one and the output features under the other. An adapter does not record which it was. gpt_oss has H
== I, but gate_up_proj is never square. That its halves are interleaved does not matter, because a pair covers the whole
of gate_up_proj.
"""

from __future__ import annotations

from harness.merge.base.families import Family

FAMILY = Family(model_types=("gpt_oss",), transposed=True, layout_by_version="before-0.19")
