"""nemotron_h: experts without a gate (squared ReLU), so that up_proj is a fused parameter of its own."""

from __future__ import annotations

from harness.merge.base.families import Family

FAMILY = Family(model_types=("nemotron_h",), gated=False)
