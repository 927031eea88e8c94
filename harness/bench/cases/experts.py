"""QLoRA on fused experts: what loading and training take, quantised against 16 bits and by each forward path."""

from __future__ import annotations

from functools import partial
from typing import Any

from harness.bench.case import Found, Step, Tick
from harness.bench.lab import Lab, contender
from harness.bench.pairs import rounds
from harness.bench.process import MeasurementError
from harness.bench.programs.experts_train import GROUPED
from harness.bench.section import Goal, Section, Table, at_least, bounded, interval, mebibytes
from harness.bench.settings import Settings
from harness.bench.statistics import Estimate, estimate, ratios

ORDER = 6
FAMILIES = ("qwen3_moe", "glm4_moe", "deepseek_v3", "qwen3_5_moe")
CODES: dict[str, str | None] = {"bf16": None, "nf4": "nf4", "int8": "int8"}
LOAD_PEAK = 0.85
RESIDENT = {"nf4": 0.30, "int8": 0.55}
PATHS = ("eager", "grouped_mm", GROUPED)
PATH_CODES = ("bf16", "nf4")
PATH_FAMILY = "qwen3_moe"
LOAD_PATH = "grouped_mm"
STEPS = 3
"""Of which the first, which warms up, is not counted."""


def steps(settings: Settings) -> list[Step]:
    """Return a step for each family's loads, and one for the forward paths."""
    families = FAMILIES[:1] if settings.quick else FAMILIES
    count = 1 if settings.quick else 2
    loads = [
        Step(name=f"experts/load/{family}", units=len(CODES), measure=partial(_loads, family=family))
        for family in families
    ]
    units = count * len(PATHS) * len(PATH_CODES)
    return [*loads, Step(name="experts/paths", units=units, measure=partial(_paths, count=count))]


def _base(lab: Lab, family: str) -> Any:
    folder = lab.work / f"experts-{family}"
    if not folder.exists():
        request: dict[str, object] = {"family": family, "out": str(folder), "seed": lab.settings.seed}
        lab.run("harness.bench.programs.experts_base", request, inputs=(), state="warm", python=lab.python("peft"))
    return folder


def _train(lab: Lab, family: str, code: str, path: str, count: int) -> dict[str, Any]:
    """Return what one process found, or ``{"failed": reason}``."""
    request: dict[str, object] = {
        "base": str(_base(lab, family)), "code": CODES[code], "path": path, "steps": count,
    }  # fmt: skip
    try:
        module = "harness.bench.programs.experts_train"
        ran = lab.run(module, request, inputs=(_base(lab, family),), state="warm", python=lab.python("peft"))
    except MeasurementError as error:
        return {"failed": lab.plain(str(error))}
    return dict(ran.found)


def _loads(lab: Lab, tick: Tick, *, family: str) -> dict[str, Any]:
    found = {}
    for code in CODES:
        found[code] = _train(lab, family, code, LOAD_PATH, 1)
        tick()
    if family != PATH_FAMILY:
        lab.remove(lab.work / f"experts-{family}")
    return found


def _paths(lab: Lab, tick: Tick, *, count: int) -> dict[str, Any]:
    names = [f"{code} {path}" for code in PATH_CODES for path in PATHS]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for order in rounds(names, count):
        for name in order:
            code, _, path = name.partition(" ")
            found[name].append(_train(lab, PATH_FAMILY, code, path, STEPS))
            tick()
    lab.remove(lab.work / f"experts-{PATH_FAMILY}")
    return {"runs": found, "versions": lab.versions.get("experts_train", {}), "title": contender("peft").TITLE}


def _rate(run: dict[str, Any]) -> float:
    """Return tokens per second of the best step after the first: noise only ever slows a step down."""
    return float(run["tokens"] / min(run["step_seconds"][1:]))


def _faster(runs: dict[str, list[dict[str, Any]]], one: str, other: str) -> Estimate | None:
    """Return how many times as many tokens per second ``one`` has as ``other``."""
    if any("failed" in run for run in [*runs[one], *runs[other]]):
        return None
    return estimate(ratios([_rate(run) for run in runs[one]], [_rate(run) for run in runs[other]]))


def section(found: Found, settings: Settings) -> Section:
    """Return the section."""
    families = FAMILIES[:1] if settings.quick else FAMILIES
    loads = {family: found.get(f"experts/load/{family}", {}) for family in families}
    runs = found.get("experts/paths", {}).get("runs", {})
    return Section(
        title="QLoRA on fused experts",
        how=(
            (
                "A model whose layers have 64 experts of 3 x 768 x 768 weights, saved in bf16; a LoRA of rank 16 on every expert; 256 tokens a step. Peaks are of"
                " anonymous memory above the imports, sampled every 2 ms; 16-bit experts that stay mapped from the file (qwen3_5_moe) count with their bytes. Paths run in interleaved rounds, each in a process of its own; a run counts with its best step after the first."
            ),
        ),
        goals=_goals(loads, runs),
        tables=(
            Table(
                title="Load and one training step, by transformers' grouped_mm",
                head=("family", "code", "load peak, MiB", "experts, MiB", "step peak, MiB"),
                rows=tuple(_load_row(family, code, loads[family].get(code)) for family in families for code in CODES),
            ),
            Table(
                title="Forward paths, a training step",
                head=("base", "path", "tokens/s", "step peak, MiB", "times eager", "times grouped_mm"),
                rows=tuple(_path_row(runs, code, path) for code in PATH_CODES for path in PATHS if runs),
            ),
        ),
    )


def _load_row(family: str, code: str, run: dict[str, Any] | None) -> tuple[str, ...]:
    if run is None or "failed" in run:
        return (family, code, "-" if run is None else f"failed: {run['failed']}", "-", "-")
    return (family, code, *map(mebibytes, (_load_peak(run), run["expert_bytes"], run["step_peak"])))


def _load_peak(run: dict[str, Any]) -> float:
    """Return the peak of a load; experts that lie on disk as they are in memory stay mapped, and count with their bytes."""
    return float(max(run["load_peak"], run["expert_bytes"]))


def _path_row(runs: dict[str, list[dict[str, Any]]], code: str, path: str) -> tuple[str, ...]:
    name = f"{code} {path}"
    failed = next((run["failed"] for run in runs[name] if "failed" in run), None)
    if failed is not None:
        return (code, path, f"failed: {failed}", "-", "-", "-")
    best = sorted(_rate(run) for run in runs[name])[len(runs[name]) // 2]
    versus = [_faster(runs, name, f"{code} {other}") for other in PATHS[:2]]
    peak = mebibytes(max(run["step_peak"] for run in runs[name]))
    return (code, path, f"{best:.0f}", peak, *("-" if ratio is None else interval(ratio) for ratio in versus))


def _goals(loads: dict[str, dict[str, Any]], runs: dict[str, list[dict[str, Any]]]) -> tuple[Goal, ...]:
    """Return the goals: the worst family of each."""
    goals = []
    for code, limit in RESIDENT.items():
        known = [found for found in loads.values() if "failed" not in found.get(code, {"failed": ""})]
        complete = len(known) == len(loads) and all("failed" not in found["bf16"] for found in known)
        peak = max(_load_peak(found[code]) / _load_peak(found["bf16"]) for found in known) if complete else None
        kept = max(f[code]["expert_bytes"] / f[code]["expert_bytes_16_bit"] for f in known) if complete else None
        goals += [
            bounded(f"peak of loading in {code} / in bf16, worst family", peak, LOAD_PEAK, ""),
            bounded(f"resident bytes of experts in {code} / in 16 bits", kept, limit, ""),
        ]
    for code in PATH_CODES if runs else ():
        ratio = _faster(runs, f"{code} {GROUPED}", f"{code} grouped_mm")
        goals.append(at_least(f"tokens/s of our grouped forward / grouped_mm, {code}", ratio, 1.0))
    return tuple(goals)
