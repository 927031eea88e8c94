"""Both gates on a merged directory, as recorded checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.contract.tensors import COUNTS, RIGHT
from harness.engines.engine import engine
from harness.worker.checkpoints.family import Checkpoint
from harness.worker.checkpoints.writer import sha256_of_directory
from harness.worker.observation import Judgement, Observation
from harness.worker.request import Request
from harness.worker.stages.claims import Claim, claims_of_manifest, judge_claims
from harness.worker.stages.definition import check_definition
from harness.worker.stages.evaluate import REFERENCE, Sample, has_view, load_view
from harness.worker.stages.functional import Distance, Matches, distance, match_samples, surest_replaced
from harness.worker.stages.funnel import record
from harness.worker.stages.merge import EDITED
from harness.worker.stages.tensor_gate import NAMES_SHOWN, TensorReport, inspect

INEXACT_ALLOWED = 16
"""Elements that may be inexact however few there are. Float32's sum falls on the other side of a tie of bf16 in one of
some 30,000 (1.3e-5 to 6.8e-5 were measured), so of 40,000 five may do so by chance, where ``exact_min`` allows four.
``ulp_max`` holds for these too."""


def exact_band(exact_min: float, elements: int) -> float:
    """Return the smallest share of so many elements that must equal the rightly rounded float64 result."""
    return min(exact_min, max(0.0, 1 - INEXACT_ALLOWED / elements)) if elements else exact_min


class Truth:
    """What the other models are held against: the trained model as it was when training ended.

    A merge that stores fewer digits than training used cannot say what the trained model said: in a tiny random model
    one rounding flips routers. There the functional gate is held against ``reference``: the base with PEFT's own deltas
    added in float64 and rounded once (``stages.reference``). The distance from the trained model is reported beside it.
    So it is with QLoRA: the model that was trained, and ``base_logits``, are of a quantised base, and the merge is not.
    """

    def __init__(self, request: Request) -> None:
        tensors, samples = load_view(request.work, "trained")
        self.trained = tensors["logits"]
        self.base_logits = tensors["base_logits"]
        gaps = tensors["gaps"]
        self.logits, self.samples = self.trained, samples
        if has_view(request.work, REFERENCE):
            tensors, self.samples = load_view(request.work, REFERENCE)
            self.logits, gaps = tensors["logits"], tensors["gaps"]
        self.clear = gaps >= request.bands.near_tie_epsilon
        self.signal: Distance = distance(self.trained, self.base_logits, self.clear)


def compare(observation: Observation, request: Request, checkpoint: Checkpoint, said: dict[str, Any]) -> None:
    """Judge the merged directory and write metrics, counts and checks, and what the engine ``said`` beside them.

    The bytes are judged even where the directory could not be loaded again: that failure has a stage of its own.
    """
    loaded = observation.completed("reload-merged")
    view = "merged" if loaded else None
    report = judge(observation, request, checkpoint, merged=request.merged, view=view, edited=said[EDITED])
    measured = report.counts
    record(observation, "merged", report.merged_of_kind())
    rightly, applied = sum(measured[name] for name in RIGHT), said.get("engine_applied")
    # An engine may count what it changed, or all that is as it should be: a delta of zero changes nothing.
    right = measured["applied"] if applied == measured["applied"] else rightly
    own = {
        "tensors changed": (applied, right),
        "tensors to change": (said.get("engine_attempted"), measured["attempted"]),
    }
    claims = [Claim(what=what, said=it, measured=so) for what, (it, so) in own.items() if it is not None]
    claims += claims_of_manifest(request.merged, base=request.base, adapter=request.adapter, measured=report)
    fewer = Claim(what="tensors changed", said=rightly - 1, measured=rightly)
    observation.judge("claims", "compare", judge_claims(claims), control=judge_claims([*claims, fewer]))
    observation.data["merge"] |= {name: value for name, value in said.items() if name != EDITED}


def judge(
    observation: Observation,
    request: Request,
    checkpoint: Checkpoint,
    *,
    merged: Path,
    view: str | None,
    edited: Sequence[str] = (),
) -> TensorReport:
    """Hold one merged directory against both gates, and return what its bytes say.

    The cell's merge and its controls go through here alike.

    Args:
        observation: where checks, counts and metrics go.
        request: the cell.
        checkpoint: what the base is.
        merged: the directory.
        view: the name under which its reloaded model's logits, and samples where it could generate, were kept; None: it
            could not be loaded.
        edited: files of its inputs that the engine changed; none where no engine ran.

    Returns:
        What the bytes say.
    """
    report = inspect(
        checkpoint,
        work=request.work,
        base=request.base,
        adapter=request.adapter,
        merged=merged,
        ulp_max=request.bands.ulp_max,
        keeps_bytes=engine(request.engine).keeps_bytes,
    )
    record_merge(observation, report)
    if view is not None:
        tensors, samples = load_view(request.work, view)
        functional_checks(observation, request, Truth(request), tensors["logits"], samples)
    tensor_checks(observation, request, report, edited)
    return report


def record_merge(observation: Observation, report: TensorReport) -> None:
    """Write the measured counts."""
    observation.data["merge"] = {
        **_counts(report.counts),
        "by_kind": {kind: _counts(counts) for kind, counts in sorted(report.by_kind.items())},
        "first_error": next(iter(report.not_applied + report.unpaired), None),
        "renamed": dict(sorted(report.renamed.items())),
        "files_rewritten": report.files_rewritten,
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
    observation: Observation, request: Request, truth: Truth, logits: Any, samples: list[Sample] | None
) -> None:
    """Record what a user of the merged model would notice. Samples are compared where both models could generate."""
    bands = request.bands
    merged = distance(truth.logits, logits, truth.clear)
    trained = distance(truth.trained, logits, truth.clear)
    observation.data["metrics"] |= {
        "kl_trained_merged": trained.kl,
        "kl_trained_merged_p99": trained.kl_p99,
        "kl_trained_merged_max": trained.kl_max,
        "kl_trained_merged_near_tie": trained.kl_near_tie,
        "kl_reference_merged": None if truth.logits is truth.trained else merged.kl,
        "kl_trained_base": truth.signal.kl,
        "kl_merged_base": distance(logits, truth.base_logits, truth.clear).kl,
        "max_logprob_diff": merged.max_logprob_diff,
        "top1_agreement": merged.top1_agreement,
        "positions_total": truth.clear.numel(),
        "positions_near_tie": int((~truth.clear).sum()),
    }
    clear = float(truth.clear.double().mean())

    def signal(kl: float) -> Judgement:
        return Judgement(
            value=kl,
            band=f">= {bands.signal_min:g}, on at least {bands.clear_min:.0%} of the positions",
            passed=kl >= bands.signal_min and clear >= bands.clear_min,
            detail=f"{clear:.0%} of the positions lie clear of router ties",
        )

    itself = distance(truth.trained, truth.trained, truth.clear)
    observation.judge("signal", "compare", signal(truth.signal.kl), control=signal(itself.kl))
    observation.check("kl", "compare", merged.kl, f"<= {bands.kl_max:g}", passed=merged.kl <= bands.kl_max)
    difference = merged.max_logprob_diff
    observation.check(
        "logprob", "compare", difference, f"<= {bands.logprob_max:g}", passed=difference <= bands.logprob_max
    )
    check_definition(observation, "compare", request, name="merged", logits=logits, clear=truth.clear)

    if truth.samples is not None and samples is not None:
        check_samples(observation, request, truth.samples, samples)


def check_samples(
    observation: Observation, request: Request, reference: Sequence[Sample], samples: Sequence[Sample]
) -> None:
    """Record how many greedy samples of the merge are those of what it is held against."""
    bands = request.bands
    matches = match_samples(reference, samples, tie=2 * bands.logprob_max)
    observation.data["metrics"] |= {
        "samples_matched": matches.matched,
        "samples_total": len(reference),
        "first_divergence": matches.first_divergence,
    }

    def judged(matches: Matches) -> Judgement:
        share = (matches.matched + matches.tied) / len(samples)
        return Judgement(
            value=share,
            band=f">= {bands.samples_min:g} matched, ties apart",
            passed=share >= bands.samples_min,
            detail=matches.first_divergence,
        )

    altered = match_samples(reference, surest_replaced(reference), tie=2 * bands.logprob_max)
    observation.judge("samples", "compare", judged(matches), control=judged(altered))


def tensor_checks(observation: Observation, request: Request, report: TensorReport, edited: Sequence[str] = ()) -> None:
    """Record what the bytes say."""
    bands, counts = request.bands, report.counts
    rightly = sum(counts[name] for name in RIGHT)
    attempted = counts["attempted"]
    observation.check(
        "applied",
        "compare",
        f"{rightly}/{attempted}",
        "all attempted, at least one",
        passed=rightly == attempted > 0 and not report.unpaired,
        detail=_names(report.not_applied + [f"{pair} (covers nothing on disk)" for pair in report.unpaired]),
    )
    exact, enough = report.exact_fraction, exact_band(bands.exact_min, report.changed_elements)
    observation.check(
        "exact",
        "compare",
        exact,
        f">= {enough:g}",
        passed=exact is not None and exact >= enough and report.max_ulp <= bands.ulp_max,
        detail=f"largest distance {report.max_ulp:.3g} ulp, at most {bands.ulp_max:g} allowed",
    )

    # Every expert saw tokens, or the check of that name has failed: a delta that is still zero was lost in training.
    def coverage(idle: list[str]) -> Judgement:
        return Judgement(
            value=len(idle),
            band="== 0 tensors or experts without a delta",
            passed=not idle,
            detail=_names(idle),
        )

    observation.judge("coverage", "compare", coverage(report.idle), control=coverage(report.idle_altered))
    different = report.untouched_changed
    observation.check(
        "untouched_bytes", "compare", len(different), "== 0", passed=not different, detail=_names(different)
    )
    keys = report.keys_missing + report.keys_unexpected + [f"{key} (index)" for key in report.index_wrong]
    observation.check("keys", "compare", len(keys), "== 0", passed=not keys, detail=_what_of_the_keys(report, keys))
    observation.check(
        "dtypes",
        "compare",
        len(report.dtype_changes),
        "== 0",
        passed=not report.dtype_changes,
        detail=_names(report.dtype_changes),
    )
    files = [f"{name} (changed by the engine, and not its own)" for name in edited] + report.files_missing
    files += [f"{name} (changed)" for name in report.files_changed]
    files += [f"{name} (not the base's)" for name in report.files_unexpected]
    if sha256_of_directory(request.base) != observation.data["base_sha256"]:
        files.append("the base itself has changed since it was written")
    observation.check("files", "compare", len(files), "== 0", passed=not files, detail=_names(files))


def _what_of_the_keys(report: TensorReport, keys: list[str]) -> str:
    """Say what is wrong with the keys; a loss that is declared as known must not hide another, so it is told apart."""
    if keys == report.extras_missing:
        return f"all of them missing, and none of them loaded by the model: {_names(keys)}"
    return _names([key for key in keys if key not in report.extras_missing] + report.extras_missing)


def _counts(counter: Counter[str]) -> dict[str, int]:
    return {name: counter[name] for name in COUNTS}


def _names(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
