"""What quantisation cost and what merging cost, apart: a gap of 0.05 must not hide a skipped expert.

The *gap* is KL(trained ‖ base + adapter, unmerged), for either base. It is reported. The *merge error* is KL(base +
adapter, unmerged ‖ merged), for either base. It is held against the band of any merge. For the original base the
functional gate measures it (``compare``), for the dequantised one this module.
"""

from __future__ import annotations

from pathlib import Path

from harness.engines.engine import engine
from harness.worker.checkpoints.family import Checkpoint
from harness.worker.observation import Judgement, Observation
from harness.worker.request import Request
from harness.worker.stages.compare import Truth
from harness.worker.stages.evaluate import REFERENCE, has_view, load_view
from harness.worker.stages.functional import distance, judge_kl
from harness.worker.stages.quantized import DEQUANTIZED, MERGED_DEQUANTIZED
from harness.worker.stages.reference import save_reference
from harness.worker.stages.tensor_gate import TensorReport, inspect

REFERENCE_DEQUANTIZED = f"{REFERENCE}-dequantized"


def compare_quantized(observation: Observation, request: Request, checkpoint: Checkpoint, vocab: int) -> None:
    """Judge the merge onto the dequantised base by its tensors, measure both gaps, and judge what the merge says.

    What it says is not known where it could not be loaded again: that failure has a stage of its own.
    """
    _check_tensors(observation, request, checkpoint)
    save_reference(request, checkpoint, vocab, base=request.work / DEQUANTIZED, name=REFERENCE_DEQUANTIZED)
    truth = Truth(request)
    reference, _ = load_view(request.work, REFERENCE_DEQUANTIZED)
    clear = reference["gaps"] >= request.bands.near_tie_epsilon
    observation.data["metrics"] |= {
        "kl_quantization_gap_original": distance(truth.trained, truth.logits, truth.clear).kl,
        "kl_quantization_gap_dequantized": distance(truth.trained, reference["logits"], clear).kl,
    }
    if not has_view(request.work, MERGED_DEQUANTIZED):
        return
    merged, _ = load_view(request.work, MERGED_DEQUANTIZED)
    judgement, control = judge_kl(reference["logits"], merged["logits"], clear, band=request.bands.kl_max)
    observation.data["metrics"]["kl_dequantized_merged"] = judgement.value
    observation.judge("kl_dequantized", "compare", judgement, control=control)


def _check_tensors(observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    """Hold the merge onto the dequantised base against base + delta, from the bytes."""

    def looked_at(merged: Path) -> TensorReport:
        return inspect(
            checkpoint,
            work=request.work,
            base=request.work / DEQUANTIZED,
            adapter=request.adapter,
            merged=merged,
            ulp_max=request.bands.ulp_max,
            keeps_bytes=engine(request.engine).keeps_bytes,
        )

    def applied(report: TensorReport) -> Judgement:
        counts = report.counts
        rightly, attempted = counts["attempted"] - counts["dropped"] - counts["wrong"], counts["attempted"]
        return Judgement(
            value=f"{rightly}/{attempted}",
            band="all attempted, at least one",
            passed=rightly == attempted > 0 and not report.unpaired,
            detail=", ".join(report.not_applied[:4]),
        )

    def untouched(wrong: list[str]) -> Judgement:
        return Judgement(value=len(wrong), band="== 0", passed=not wrong, detail=", ".join(wrong[:4]))

    report = looked_at(request.work / MERGED_DEQUANTIZED)
    control = looked_at(request.work / DEQUANTIZED)
    observation.judge("applied_dequantized", "compare", applied(report), control=applied(control))
    wrong = _beside_deltas(report)
    observation.judge("untouched_dequantized", "compare", untouched(wrong), control=untouched([*wrong, "altered"]))


def _beside_deltas(report: TensorReport) -> list[str]:
    """Return all that is wrong but the deltas; what the model does not load is the check of the first merge's keys."""
    lost = [key for key in report.keys_missing if key not in report.extras_missing]
    keys = [*lost, *report.keys_unexpected, *report.index_wrong]
    files = [*report.files_missing, *report.files_changed, *report.files_unexpected]
    return [*report.untouched_changed, *keys, *report.dtype_changes, *files]
