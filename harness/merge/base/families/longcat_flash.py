"""longcat_flash: gate and up rows for the zero experts too, which pass their input on; down rows for the others alone.

Seen in what transformers 5.24.0 holds in memory and saves (``LongcatFlashExperts``).
"""

from __future__ import annotations

from harness.merge.base.families import Family

FAMILY = Family(model_types=("longcat_flash",), idle_experts="zero_expert_num")
