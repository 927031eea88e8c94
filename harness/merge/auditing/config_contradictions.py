"""Where the merged checkpoint's config.json contradicts the tensors beside it.

Only what a right merge would have changed is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from harness.merge.auditing.merged_checkpoint import MergedCheckpoint
from harness.merge.auditing.pairing import Pairing
from harness.merge.base.checkpoint import CONFIG_FILE
from harness.merge.base.weight import QuantisedSource
from harness.merge.files.confine import confined
from harness.merge.files.json_file import read_object
from harness.merge.plan.merge_plan import MergePlan, PlanRow
from harness.merge.write.tensors import TORCH_DTYPES


def merged_config(merged: MergedCheckpoint) -> Mapping[str, object]:
    """Return the merged checkpoint's config.json; empty where there is none, which is a missing file."""
    return read_object(confined(merged.root, CONFIG_FILE), constants=True) if CONFIG_FILE in merged.files else {}


def config_problems(
    plan: MergePlan, merged: MergedCheckpoint, pairings: Mapping[str, Pairing], config: Mapping[str, object]
) -> tuple[str, ...]:
    """Return the contradictions in words.

    A tensor that was not changed contradicts no setting that was not changed either.
    """
    text = config.get("text_config")
    given = {**(text if isinstance(text, dict) else {}), **config}
    return tuple(_problems(plan, merged, pairings, given))


def _problems(
    plan: MergePlan, merged: MergedCheckpoint, pairings: Mapping[str, Pairing], given: Mapping[str, object]
) -> Iterator[str]:
    def plain(row: PlanRow) -> bool:
        return isinstance(row.source, QuantisedSource) and any(
            merged.info(key).dtype in TORCH_DTYPES for key in pairings[row.key].keys
        )

    if given.get("quantization_config") and any(plain(row) for row in (*plan.rows, *plan.conversions)):
        yield "quantization_config is still there, and weights are not quantised"
    if given.get("quantization_config") and plan.quantization is None:
        yield "quantization_config is there, and the base is not quantised"
    size = plan.config.get("vocab_size")
    resized = any(row.source is None and pairings[row.key].found for row in plan.rows)
    if size is not None and resized and given.get("vocab_size") != size:
        yield f"vocab_size is {str(given.get('vocab_size'))[:20]}, and the embeddings have {size} rows"
    head = any(name.endswith("lm_head.weight") for name in merged.shard_of)
    if plan.config.get("tie_word_embeddings") is False and head and given.get("tie_word_embeddings") is True:
        yield "tie_word_embeddings is true, and lm_head was trained apart from the embedding"
