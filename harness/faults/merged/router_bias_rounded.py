"""The router's correction bias, which is float32 in a bf16 checkpoint, is written as bf16.

transformers 4 loads it in the model's dtype, so that a merge of DeepSeek-V3 saves it rounded (transformers#42580).
"""

from __future__ import annotations

from harness.faults.breaking import alter_tensors, in_bf16
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge whose correction biases are bf16."""
    site.write(site.deltas)
    alter_tensors(
        site.merged, lambda key, tensor: tensor.bfloat16() if key.endswith("e_score_correction_bias") else tensor
    )


FAULT: Fault = MergeFault(
    breaks="rounds the routers' correction biases to bf16",
    where="merged",
    noticed_by=frozenset({"compare/dtypes", "compare/untouched_bytes"}),
    cell={"family": "deepseek_v3", "dtype": "bf16"},
    applies=in_bf16,
    plant=plant,
    reference="transformers#42580",
)
