"""Both gates on a merged directory, as recorded checks."""

from __future__ import annotations

from collections import Counter
from typing import Any

from harness.worker.checkpoints.family import Checkpoint
from harness.worker.observation import Observation
from harness.worker.request import Request
from harness.worker.stages.evaluate import Sample, load_view
from harness.worker.stages.functional import Distance, distance, match_samples
from harness.worker.stages.tensor_gate import NAMES_SHOWN, TensorReport, inspect

COUNTS = ("attempted", "applied", "zero_delta", "below_rounding", "dropped", "wrong")


class Truth:
    """The trained model's own view, and the base's, as they were when training ended."""

    def __init__(self, request: Request) -> None:
        tensors, self.samples = load_view(request.work, "trained")
        self.logits = tensors["logits"]
        self.base_logits = tensors["base_logits"]
        self.clear = tensors["gaps"] >= request.bands.near_tie_epsilon
        self.signal: Distance = distance(self.logits, self.base_logits, self.clear)


def compare(observation: Observation, request: Request, checkpoint: Checkpoint, engine: dict[str, Any]) -> None:
    """Judge the merged directory and write metrics, counts and checks.

    The bytes are judged even where the directory could not be loaded again: that failure has a stage of its own.
    """
    report = inspect(
        checkpoint,
        work=request.work,
        base=request.base,
        adapter=request.adapter,
        merged=request.merged,
        ulp_max=request.bands.ulp_max,
    )
    record_merge(observation, report, engine)
    if observation.data["stages"].get("reload-merged", {}).get("result") == "pass":
        view, samples = load_view(request.work, "merged")
        functional_checks(observation, request, Truth(request), view["logits"], samples)
    tensor_checks(observation, request, report)


def record_merge(observation: Observation, report: TensorReport, engine: dict[str, Any]) -> None:
    """Write the measured counts beside the engine's own."""
    observation.data["merge"] = {
        **_counts(report.counts),
        "by_kind": {kind: _counts(counts) for kind, counts in sorted(report.by_kind.items())},
        "engine_applied": engine["engine_applied"],
        "fallback": engine["fallback"],
        "first_error": next(iter(report.not_applied + report.unpaired), None),
    }
    observation.data["metrics"] |= {
        "tensors_exact_fraction": report.exact_fraction,
        "max_ulp": report.max_ulp,
        "keys_missing": len(report.keys_missing),
        "keys_unexpected": len(report.keys_unexpected),
        "dtype_changes": len(report.dtype_changes),
        "files_missing": len(report.files_missing),
    }


def functional_checks(
    observation: Observation, request: Request, truth: Truth, logits: Any, samples: list[Sample]
) -> None:
    """Record what a user of the merged model would notice."""
    bands = request.bands
    merged = distance(truth.logits, logits, truth.clear)
    matches = match_samples(truth.samples, samples, tie=2 * bands.logprob_max)
    observation.data["metrics"] |= {
        "kl_trained_merged": merged.kl,
        "kl_trained_merged_p99": merged.kl_p99,
        "kl_trained_merged_max": merged.kl_max,
        "kl_trained_merged_near_tie": merged.kl_near_tie,
        "kl_trained_base": truth.signal.kl,
        "kl_merged_base": distance(logits, truth.base_logits, truth.clear).kl,
        "max_logprob_diff": merged.max_logprob_diff,
        "top1_agreement": merged.top1_agreement,
        "samples_matched": matches.matched,
        "samples_total": len(truth.samples),
        "first_divergence": matches.first_divergence,
        "positions_total": truth.clear.numel(),
        "positions_near_tie": int((~truth.clear).sum()),
    }
    check = observation.check
    check("signal", "compare", truth.signal.kl, f">= {bands.signal_min:g}", passed=truth.signal.kl >= bands.signal_min)
    check("kl", "compare", merged.kl, f"<= {bands.kl_max:g}", passed=merged.kl <= bands.kl_max)
    difference = merged.max_logprob_diff
    check("logprob", "compare", difference, f"<= {bands.logprob_max:g}", passed=difference <= bands.logprob_max)
    share = (matches.matched + matches.tied) / len(samples)
    check(
        "samples",
        "compare",
        share,
        f">= {bands.samples_min:g} matched, ties apart",
        passed=share >= bands.samples_min,
        detail=matches.first_divergence,
    )


def tensor_checks(observation: Observation, request: Request, report: TensorReport) -> None:
    """Record what the bytes say."""
    bands, counts = request.bands, report.counts
    rightly = counts["applied"] + counts["zero_delta"] + counts["below_rounding"]
    attempted = counts["attempted"]
    check = observation.check
    check(
        "applied",
        "compare",
        f"{rightly}/{attempted}",
        "all attempted, at least one",
        passed=rightly == attempted > 0 and not report.unpaired,
        detail=_names(report.not_applied + [f"{pair} (covers nothing on disk)" for pair in report.unpaired]),
    )
    exact = report.exact_fraction
    check(
        "exact",
        "compare",
        exact,
        f">= {bands.exact_min:g}",
        passed=exact is not None and exact >= bands.exact_min and report.max_ulp <= bands.ulp_max,
        detail=f"largest distance {report.max_ulp:.3g} ulp, at most {bands.ulp_max:g} allowed",
    )
    different = report.untouched_changed
    check("untouched_bytes", "compare", len(different), "== 0", passed=not different, detail=_names(different))
    keys = report.keys_missing + report.keys_unexpected
    check("keys", "compare", len(keys), "== 0", passed=not keys, detail=_names(keys))
    check(
        "dtypes",
        "compare",
        len(report.dtype_changes),
        "== 0",
        passed=not report.dtype_changes,
        detail=_names(report.dtype_changes),
    )
    files = report.files_missing + [f"{name} (changed)" for name in report.files_changed]
    check("files", "compare", len(files), "== 0", passed=not files, detail=_names(files))


def _counts(counter: Counter[str]) -> dict[str, int]:
    return {name: counter[name] for name in COUNTS}


def _names(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
