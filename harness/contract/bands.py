"""Where a measured value stops being right: the bands of a cell.

``matrix.toml`` has their values and how they were measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _band(
    meaning: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    of_merge: bool = True,
) -> Any:
    return field(metadata={"meaning": meaning, "ge": least, "gt": above, "le": most, "of_merge": of_merge})


@dataclass(frozen=True, kw_only=True)
class Bands:
    """What a right merge may cost.

    KL divergences are means over clear prompt positions, in nats. Logarithms are natural. Each field's metadata has its
    ``meaning`` and what a configuration may set it to: ``ge``, ``gt``, ``le`` (None: no limit). ``of_merge`` says
    whether it judges the merge itself, so that an engine may have a band of its own.
    """

    kl_max: float = _band("Largest KL(trained ‖ merged) of a right merge after a fresh reload.", above=0)
    adapter_reload_kl_max: float = _band(
        "Largest KL(trained ‖ base + saved adapter) after a fresh reload.", above=0, of_merge=False
    )
    logprob_max: float = _band(
        "Largest |Δ log p| between trained and merged, over all positions and tokens that are not near a tie.", above=0
    )
    samples_min: float = _band(
        "Smallest fraction of greedy samples that must match token by token; 1.0 is all of them.", least=0, most=1
    )
    exact_min: float = _band(
        "Smallest fraction of merged elements equal to the correctly rounded float64 result.", least=0, most=1
    )
    ulp_max: float = _band(
        "Largest distance of a merged element from that result, in ulps of max(|base|, |delta|, |result|), beyond what "
        "float32 accumulation may lose.",
        least=0,
    )
    signal_min: float = _band(
        "Smallest KL(trained ‖ base) that makes a cell worth believing; below it the cell is blind.",
        above=0,
        of_merge=False,
    )
    near_tie_epsilon: float = _band(
        "Router gap, in logits, between the last expert chosen and the first one not, below which a position is "
        "reported apart.",
        least=0,
    )
    clear_min: float = _band(
        "Smallest share of positions that must lie clear of router ties; below it the cell has seen too little.",
        above=0,
        most=1,
    )
    definition_max: float = _band(
        "Largest |Δ log p| between a base, or a base with its adapter, and what its files mean by the architecture's "
        "definition in float64, over all positions and tokens that are not near a tie.",
        above=0,
        of_merge=False,
    )
    paths_max: float = _band(
        "Largest difference between two experts forwards of the trained model: of logits, in their standard "
        "deviations, or of a LoRA tensor's gradient, relative to its norm.",
        above=0,
        of_merge=False,
    )
