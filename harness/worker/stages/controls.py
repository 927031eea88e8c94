"""Controls: deliberately broken merges that this cell's own gates must reject. A gate that lets one through is blind.

``base-copied`` is what an engine publishes that dropped everything. ``b-packing`` is a merge that read lora_B's flat axis the
other way round: same shapes, same norms, the engine's own count at 100 %, the wrong experts.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.worker.checkpoints.family import Checkpoint
from harness.worker.observation import Observation
from harness.worker.request import BPacking, Request
from harness.worker.stages.compare import Truth
from harness.worker.stages.evaluate import logits_of
from harness.worker.stages.functional import distance
from harness.worker.stages.load import load_model
from harness.worker.stages.merge import merge_with_engine
from harness.worker.stages.tensor_gate import inspect

OTHER_PACKING: dict[str, BPacking] = {"rank_major": "grouped_by_expert", "grouped_by_expert": "rank_major"}


@dataclass(frozen=True, kw_only=True)
class _Gates:
    """What the two gates said of a broken merge."""

    kl: float
    rejected_by: list[str]


def run_controls(observation: Observation, request: Request, checkpoint: Checkpoint, vocab: int) -> None:
    """Break the merge on purpose and record whether the gates notice."""
    truth = Truth(request)
    copy = request.work / "control-base-copied"
    shutil.copytree(request.base, copy)
    _record(observation, "base-copied", _judge(request, checkpoint, truth, copy, truth.base_logits))
    shutil.rmtree(copy)
    packing = observation.data["adapter"]["b_packing"]
    # With one expert or rank one both readings are the same bytes: there is nothing to break.
    if packing is None or checkpoint.num_experts == 1 or request.b_packing is not None:
        return
    out = request.work / "control-b-packing"
    merge_with_engine(request, out=out, b_packing=OTHER_PACKING[packing])
    logits = logits_of(load_model(out, request), request, vocab)
    _record(observation, "b-packing", _judge(request, checkpoint, truth, out, logits))
    shutil.rmtree(out)


def _judge(request: Request, checkpoint: Checkpoint, truth: Truth, merged: Path, logits: Any) -> _Gates:
    bands = request.bands
    report = inspect(
        checkpoint, work=request.work, base=request.base, adapter=request.adapter, merged=merged, ulp_max=bands.ulp_max
    )
    seen = distance(truth.logits, logits, truth.clear)
    rejected = []
    if report.counts["dropped"] or report.counts["wrong"]:
        rejected.append("applied")
    # Written so that NaN rejects.
    if not seen.kl <= bands.kl_max:
        rejected.append("kl")
    if not seen.max_logprob_diff <= bands.logprob_max:
        rejected.append("logprob")
    return _Gates(kl=seen.kl, rejected_by=rejected)


def _record(observation: Observation, name: str, gates: _Gates) -> None:
    """A control counts as rejected only when the tensor gate and the functional gate both reject it."""
    rejected = "applied" in gates.rejected_by and len(gates.rejected_by) > 1
    observation.data.setdefault("controls", []).append(
        {"name": name, "rejected": rejected, "by": gates.rejected_by, "value": gates.kl}
    )
    observation.check(
        f"control:{name}",
        "controls",
        ", ".join(gates.rejected_by) or "nothing",
        "rejected by both gates",
        passed=rejected,
        detail=f"KL(trained ‖ control) is {gates.kl:.3g}",
    )
