"""Forward paths of experts under PEFT on a GPU at real size.

It runs only where it is asked for by name, because it needs a GPU.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from harness.bench.case import Found, Step, Tick
from harness.bench.lab import Lab
from harness.bench.process import MeasurementError
from harness.bench.programs.experts_gpu import LIBRARY
from harness.bench.programs.experts_train import GROUPED
from harness.bench.section import Goal, Section, Table, bounded, mebibytes
from harness.bench.settings import Settings

ORDER = 8
ASKED_FOR = True
"""Not part of a run of all cases."""

RUNS = (
    ("bf16", LIBRARY), ("bf16", GROUPED), ("bf16", "grouped_mm"), ("bf16", "eager"),
    ("nf4", GROUPED), ("nf4", "grouped_mm"), ("nf4", "eager"), ("int8", GROUPED),
)  # fmt: skip
STEPS, QUICK_STEPS = 6, 2
"""The first warms up and is not counted."""


def steps(settings: Settings) -> list[Step]:
    """Return one step for each code and path, so that an interrupted run goes on where it was."""
    count = QUICK_STEPS if settings.quick else STEPS
    return [
        Step(name=f"experts-gpu/{code} {path}", units=1, measure=partial(_train, code=code, path=path, count=count))
        for code, path in RUNS
    ]


def request(base: Path, code: str, path: str, *, steps: int) -> dict[str, object]:
    """Return what the program is asked for: one code and path, on the GPU."""
    return {
        "base": str(base), "code": None if code == "bf16" else code, "path": path, "steps": steps,
        "size": "real", "device": "cuda",
    }  # fmt: skip


def _train(lab: Lab, tick: Tick, *, code: str, path: str, count: int) -> dict[str, Any]:
    """Return what one process found, or ``{"failed": reason}``."""
    base = lab.work / "experts-gpu"
    try:
        ran = lab.run(
            "harness.bench.programs.experts_gpu",
            request(base, code, path, steps=count),
            inputs=(base,) if base.exists() else (),
            state="warm",
            python=lab.gpu_python(),
            device="cuda",
        )
    except MeasurementError as error:
        return {"failed": lab.plain(str(error))}
    finally:
        tick()
    return {**ran.found, "versions": ran.versions}


def _rate(run: dict[str, Any]) -> float:
    return float(run["tokens"] / min(run["step_seconds"][1:]))


def section(found: Found, settings: Settings) -> Section:  # noqa: ARG001 - every case has the same signature
    """Return the section."""
    runs = {f"{code} {path}": found.get(f"experts-gpu/{code} {path}", {"failed": "not run"}) for code, path in RUNS}
    versions: dict[str, str] = next((run["versions"] for run in runs.values() if "versions" in run), {})
    return Section(
        title="Experts under PEFT on a GPU, at real size",
        how=(
            (
                "A qwen3_moe of 4 layers, hidden 2048, 128 experts of 768, 8 of them for a token; a LoRA of rank 16 on"
                " both expert parameters; 4 x 2048 tokens a step. Each row is a process of its own, counted with its"
                " best step after the first; bytes are those of torch's allocator. *library*: no LoRA, transformers'"
                " own grouped_mm, which trains the embeddings alone."
            ),
            "; ".join(f"{name} {value}" for name, value in sorted(versions.items())) + ".",
        ),
        goals=_goals(runs),
        tables=(
            Table(
                title="A training step",
                head=("base", "path", "tokens/s", "step peak, MiB", "load peak, MiB", "held, MiB"),
                rows=tuple(_row(code, path, runs[f"{code} {path}"]) for code, path in RUNS),
            ),
        ),
    )


def _row(code: str, path: str, run: dict[str, Any]) -> tuple[str, ...]:
    if "failed" in run:
        return (code, path, f"failed: {run['failed']}", "-", "-", "-")
    return (code, path, f"{_rate(run):,.0f}", *(mebibytes(run[name]) for name in ("step_peak", "load_peak", "held")))


def _goals(runs: dict[str, dict[str, Any]]) -> tuple[Goal, ...]:
    """Return the goals: ours takes no longer and no more memory than transformers' best path, in either code."""
    goals = []
    for code in ("bf16", "nf4"):
        ours, theirs = runs[f"{code} {GROUPED}"], runs[f"{code} grouped_mm"]
        known = "failed" not in ours and "failed" not in theirs
        time = _rate(theirs) / _rate(ours) if known else None
        peak = ours["step_peak"] / theirs["step_peak"] if known else None
        goals += [
            bounded(f"time of a step, our grouped forward / grouped_mm, {code}, GPU", time, 1.0, ""),
            bounded(f"step peak, our grouped forward / grouped_mm, {code}, GPU", peak, 1.0, ""),
        ]
    return tuple(goals)
