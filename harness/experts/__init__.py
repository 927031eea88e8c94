"""MoE expert runtime: clean reference implementations of what makes LoRA on fused experts fast and small, usable on their own.

Runs in a stack's environment; needs torch, and whatever of transformers, peft and bitsandbytes the caller already uses. Nothing in them is patched.
"""

from __future__ import annotations

from harness.experts.errors import ExpertsError, IneligibleError, NothingToEnableError, UnrecognisedLoraError
from harness.experts.extraction import ExpertLora, extract_expert_lora
from harness.experts.grouped import BlockReport, GroupedForward, enable_grouped_forward

__all__ = [
    "BlockReport",
    "ExpertLora",
    "ExpertsError",
    "GroupedForward",
    "IneligibleError",
    "NothingToEnableError",
    "UnrecognisedLoraError",
    "enable_grouped_forward",
    "extract_expert_lora",
]
