"""Adapters by themselves: what one holds, and the same adapter in another layout.

``inspect_adapter`` reads and reports; ``convert_adapter`` rewrites between io layouts, packings of lora_B, and experts fused or one by one, where
that loses nothing, so that an adapter made with one release works in another. Neither needs the model.
"""

from __future__ import annotations

from harness.merge.adapters.convert import convert_adapter
from harness.merge.adapters.inspection import AdapterFacts, inspect_adapter
from harness.merge.adapters.shape import ExpertForm

__all__ = ["AdapterFacts", "ExpertForm", "convert_adapter", "inspect_adapter"]
