"""Controls: merges that are broken on purpose, which this cell's own gates must reject.

A gate that lets one through is blind.
Which faults are controls of this cell follows from its facts (``harness.faults``). The host asks the same function
before it believes a pass. Where a fault was planted in the cell's own merge, that merge is the control of its name.
Checks of what a cell does before its merge have controls of their own, where they are made (``Observation.judge``).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.contract.checks import TABLE
from harness.faults import MergeFault, applicable_controls, fault
from harness.worker.checkpoints.family import Checkpoint
from harness.worker.observation import Observation
from harness.worker.request import Request
from harness.worker.stages.compare import judge
from harness.worker.stages.evaluate import logits_of, samples_of, save_samples, save_view
from harness.worker.stages.load import load_model
from harness.worker.stages.planting import facts_of, merge_with_fault

FUNCTIONAL = frozenset(check.name for check in TABLE if check.stage == "compare" and check.gate == "functional")
"""Checks of what a merge says. A fault that none of them must notice needs no model."""


def run_controls(observation: Observation, request: Request, checkpoint: Checkpoint, vocab: int) -> None:
    """Break the merge on purpose, fault by fault, and record whether the gates notice."""
    adapter = observation.data["adapter"]
    for name in applicable_controls(facts_of(adapter, request)):
        if name == request.fault:
            continue
        broken = request.work / f"control-{name}"
        merge_with_fault(name, request, checkpoint, adapter, out=broken)
        said = bool(fault(name).checks_of("compare") & FUNCTIONAL)
        view = _loaded_again(observation, request, vocab, broken) if said else None
        _record(observation, name, _judged(observation, request, checkpoint, broken, view))
        shutil.rmtree(broken)
    if request.fault is not None and isinstance(fault(request.fault), MergeFault):
        _record(observation, request.fault, observation)


def _loaded_again(observation: Observation, request: Request, vocab: int, broken: Path) -> str:
    """Load a broken merge and keep what it says; return the name that it is kept under.

    It generates where the cell's own merge did. Where that could not, there is nothing to hold samples against.
    """
    model = load_model(broken, request)
    save_view(request.work, broken.name, {"logits": logits_of(model, request, vocab)})
    if observation.completed("generate-merged"):
        save_samples(request.work, broken.name, samples_of(model, request, vocab))
    return broken.name


def _judged(
    observation: Observation, request: Request, checkpoint: Checkpoint, broken: Path, view: str | None
) -> Observation:
    """Judge a broken merge as the cell's own was judged: by the same code, against the same bands."""
    scratch = Observation(request.work / f"{broken.name}-observation.json", broken=True)
    scratch.data["base_sha256"] = observation.data["base_sha256"]
    print(f"    {broken.name}: broken on purpose, must be noticed", flush=True)
    judge(scratch, request, checkpoint, merged=broken, view=view)
    return scratch


def _record(observation: Observation, name: str, seen: Observation) -> None:
    """Hold what the gates said of a broken merge against what must notice it: every check that the fault names."""
    failed = [check for check in seen.data["checks"] if check["stage"] == "compare" and not check["passed"]]
    noticed, needed = list(dict.fromkeys(check["name"] for check in failed)), fault(name).checks_of("compare")
    overlooked, kl = sorted(needed - set(noticed)), seen.data["metrics"].get("kl_trained_merged")
    values = {check["name"]: check["value"] for check in reversed(failed)}
    observation.data.setdefault("controls", []).append(
        {"name": name, "rejected": not overlooked, "by": noticed, "value": kl, "values": values}
    )
    observation.check(
        f"control:{name}",
        "controls",
        ", ".join(noticed) or "nothing",
        f"rejected by {', '.join(sorted(needed))}",
        passed=not overlooked,
        detail=f"let through by {', '.join(overlooked)}; KL(trained ‖ control) is {kl}",
    )
