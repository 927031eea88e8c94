"""What a tensor is part of, and what can become of one that a merge should have changed."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal["attention", "expert", "shared_expert", "router", "dense", "embedding", "head", "other"]
"""``attention`` includes linear attention; ``dense`` is the MLP of a layer without experts.
``head`` is ``lm_head``."""
KINDS: tuple[Kind, ...] = get_args(Kind)

TensorVerdict = Literal["applied", "zero_delta", "below_rounding", "dropped", "wrong"]
"""What one attempted tensor on disk is; every one is exactly one of these."""
VERDICTS: tuple[TensorVerdict, ...] = get_args(TensorVerdict)

RIGHT: tuple[TensorVerdict, ...] = ("applied", "zero_delta", "below_rounding")
"""Those that hold what a right merge would have put there."""

COUNTS: tuple[str, ...] = ("attempted", *VERDICTS)
"""The counts of a merge: ``attempted`` is the sum of the others."""
