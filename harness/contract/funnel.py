"""From what a recipe asks for to what is merged: how many targets are left after each step, of each kind.

A target is a module, or a parameter, of the model in memory. So fused experts of a layer are two, and those of
transformers 4 are three for each expert.
"""

from __future__ import annotations

from typing import Literal, get_args

FunnelStep = Literal["asked", "attached", "gradient", "moved", "saved", "reloaded", "merged"]
"""``attached``: has a LoRA of the rank and scale that were asked for. ``gradient``: all its LoRA tensors had one.
``moved``: its delta is not zero. ``saved``: it is in the adapter's file, bit for bit. ``reloaded``: so it is in the
model that has loaded the adapter again. ``merged``: every tensor on disk that it covers is right in the merge."""
FUNNEL_STEPS: tuple[FunnelStep, ...] = get_args(FunnelStep)
