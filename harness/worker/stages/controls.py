"""Controls: deliberately broken merges that this cell's own gates must reject. A gate that lets one through is blind.

``base-copied`` is what an engine publishes that dropped everything. ``b-packing`` is a merge that read lora_B's flat axis the
other way round: same shapes, same norms, the engine's own count at 100 %, the wrong experts.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.worker.checkpoints.family import Checkpoint
from harness.worker.observation import Observation
from harness.worker.request import BPacking, Request
from harness.worker.stages.compare import judge
from harness.worker.stages.evaluate import logits_of, samples_of, save_view
from harness.worker.stages.load import load_model

FUNCTIONAL = frozenset({"kl", "logprob", "samples"})
"""Checks of the functional gate."""

OTHER_PACKING: dict[str, BPacking] = {"rank_major": "grouped_by_expert", "grouped_by_expert": "rank_major"}


def run_controls(observation: Observation, request: Request, checkpoint: Checkpoint, vocab: int) -> None:
    """Break the merge on purpose and record whether the gates notice."""
    copy = request.work / "control-base-copied"
    shutil.copytree(request.base, copy)
    _try(observation, request, checkpoint, vocab, copy)
    packing = observation.data["adapter"]["b_packing"]
    # With one expert both readings are the same bytes: there is nothing to break.
    if packing is None or checkpoint.num_experts == 1 or request.b_packing is not None:
        return
    from harness.merge import merge, plan_merge

    out = request.work / "control-b-packing"
    merge(plan_merge(request.base, request.adapter, b_packing=OTHER_PACKING[packing]), out)
    _try(observation, request, checkpoint, vocab, out)


def _try(observation: Observation, request: Request, checkpoint: Checkpoint, vocab: int, broken: Path) -> None:
    """Reload a broken merge and judge it as the cell's own was judged; remove it afterwards.

    It counts as rejected only when the tensor gate and the functional gate both reject it.
    """
    model = load_model(broken, request)
    logits, samples = logits_of(model, request, vocab), samples_of(model, request, vocab)
    save_view(request.work, broken.name, {"logits": logits}, samples)
    scratch = Observation(request.work / f"{broken.name}-observation.json")
    scratch.data["base_sha256"] = observation.data["base_sha256"]
    print(f"    control {broken.name}: each FAILED below is a fault that was noticed", flush=True)
    judge(scratch, request, checkpoint, merged=broken, view=broken.name)
    shutil.rmtree(broken)
    noticed = [check["name"] for check in scratch.data["checks"] if not check["passed"]]
    rejected = "applied" in noticed and not FUNCTIONAL.isdisjoint(noticed)
    name, kl = broken.name.removeprefix("control-"), scratch.data["metrics"]["kl_trained_merged"]
    observation.data.setdefault("controls", []).append({"name": name, "rejected": rejected, "by": noticed, "value": kl})
    observation.check(
        f"control:{name}",
        "controls",
        ", ".join(noticed) or "nothing",
        "rejected by both gates",
        passed=rejected,
        detail=f"KL(trained ‖ control) is {kl:.3g}",
    )
