"""Which plans the audit can judge: those whose every tensor is the base's plus one delta, or one tensor of the adapter instead.

The rest is refused by name before anything is read. Either no verdict would be more than a guess (other engines compute DoRA's norms in
half precision, which moves whole rows by more than the delta), or there is no tensor of the base to compare with (a resized
vocabulary, a head that a tied base does not store, a quantised weight).
"""

from __future__ import annotations

from harness.merge.errors import UnsupportedAdapterError, UnsupportedBaseError
from harness.merge.records import MergePlan, PairUse

MERGE_INSTEAD = "Merge it with harness merge, which does this, and compare the two."


def check_judgeable(plan: MergePlan) -> None:
    """Prove that every planned tensor is of a kind that the audit judges.

    Raises:
        UnsupportedBaseError: the base is quantised.
        UnsupportedAdapterError: the adapter has DoRA, resizes or unties the vocabulary, or puts deltas on a tensor that it also replaces.
    """
    if plan.quantization is not None:
        raise UnsupportedBaseError(
            f"the base is quantised ({plan.quantization}); the audit compares with bases stored in 16 or 32 bits.",
            "Give the directory of the 16-bit original as --base, if that is what the deltas were merged into.",
        )
    if any(isinstance(use, PairUse) and use.magnitude is not None for use in plan.uses):
        raise UnsupportedAdapterError("the adapter uses DoRA, which the audit does not judge.", MERGE_INSTEAD)
    if "vocab_size" in plan.config:
        raise UnsupportedAdapterError(
            "the adapter resizes the vocabulary, which the audit does not judge.", MERGE_INSTEAD
        )
    if plan.config or plan.conversions:
        raise UnsupportedAdapterError(
            "the adapter changes only one of lm_head and embed_tokens, which the base ties; the audit does not judge that.",
            MERGE_INSTEAD,
        )
    for row in plan.rows:
        if row.source is None or row.source.keys != (row.key,) or row.shape != plan.base.info(row.key).shape:
            raise UnsupportedAdapterError(f"the adapter makes {row.key} anew, which the audit does not judge.")
        if any(len(region.uses) != 1 for region in row.regions):
            raise UnsupportedAdapterError(
                f"the adapter replaces {row.key} and has a LoRA on top of it, which the audit does not judge.",
                MERGE_INSTEAD,
            )
