"""MoE expert runtime: clean reference implementations of what makes LoRA on fused experts fast and small, usable on their own.

Runs in a stack's environment; needs torch, and whatever of transformers, peft and bitsandbytes the caller already uses. Nothing in them is patched.
"""

from __future__ import annotations

from harness.experts.errors import ExpertsError, UnrecognisedLoraError
from harness.experts.extraction import ExpertLora, extract_expert_lora

__all__ = ["ExpertLora", "ExpertsError", "UnrecognisedLoraError", "extract_expert_lora"]
