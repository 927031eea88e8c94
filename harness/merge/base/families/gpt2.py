"""gpt2: linear layers are ``Conv1D``, whose weight is (in, out); published files leave ``transformer.`` out."""

from __future__ import annotations

from harness.merge.base.families import Family

FAMILY = Family(
    model_types=("gpt2", "openai-gpt"),
    renames=((r"^transformer\.", ""),),
    conv1d=("c_attn", "c_proj", "c_fc", "q_attn"),
)
