"""The grouped forward: experts that keep their LoRA factored.

It stands in for the library's forward where it is known to compute the same.
"""

from __future__ import annotations

from harness.experts.grouped.blocks import BlockReport
from harness.experts.grouped.enable import GroupedForward, enable_grouped_forward

__all__ = ["BlockReport", "GroupedForward", "enable_grouped_forward"]
