"""QLoRA on fused experts: what loading and training take, quantised against 16 bits and by each forward path."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from harness.bench.case import Found, Step, Tick
from harness.bench.lab import Lab
from harness.bench.pairs import rounds
from harness.bench.process import MeasurementError
from harness.bench.programs.experts_train import GROUPED
from harness.bench.section import Goal, Section, Table, at_least, bounded, interval, mebibytes
from harness.bench.settings import Settings
from harness.bench.statistics import Estimate, estimate, ratios

ORDER = 6
FAMILIES = ("qwen3_moe", "glm4_moe", "deepseek_v3", "qwen3_5_moe")
"""Whose loads are measured. A family comes in when the bench is run anew: a published run holds every step."""
CODES: dict[str, str | None] = {"bf16": None, "nf4": "nf4", "int8": "int8"}
LOAD_PEAK = 0.85
RESIDENT = {"nf4": 0.30, "int8": 0.55}
PATHS = ("eager", "grouped_mm", GROUPED)
LIST_PATHS = ("eager", GROUPED)
"""transformers 4 has one way through its lists of experts."""
PATH_CODES = ("bf16", "nf4")
PATH_FAMILY = "qwen3_moe"
LOAD_PATH = "grouped_mm"
LIST_STACK = "4."
STEPS = 3
"""The first warms up and is not counted."""
ROUNDS = 3

GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""With these glibc gives freed memory back at once, which is slower.

Without them it keeps tens of megabytes by chance, as much as some paths differ by.
"""

Runs = dict[str, list[dict[str, Any]]]
"""By code and path, as ``nf4 eager``: what each process found."""


def steps(settings: Settings) -> list[Step]:
    """Return a step for each family's loads, and one for the forward paths of either kind of experts."""
    families = FAMILIES[:1] if settings.quick else FAMILIES
    count = 1 if settings.quick else ROUNDS
    return [
        *(
            Step(name=f"experts/load/{family}", units=len(CODES), measure=partial(_loads, family=family))
            for family in families
        ),
        *(
            Step(
                name=name,
                units=(count + 1) * len(paths) * len(PATH_CODES),
                measure=partial(_paths, paths=paths, listed=listed, count=count),
            )
            for name, paths, listed in (("experts/paths", PATHS, False), ("experts/list-paths", LIST_PATHS, True))
        ),
    ]


def _base(lab: Lab, family: str) -> Path:
    folder = lab.work / f"experts-{family}"
    if not folder.exists():
        request: dict[str, object] = {"family": family, "out": str(folder), "seed": lab.settings.seed}
        lab.run("harness.bench.programs.experts_base", request, inputs=(), state="warm", python=lab.python("peft"))
    return folder


def _train(
    lab: Lab, base: Path, code: str, path: str, *, count: int, listed: bool = False, memory: bool = False
) -> dict[str, Any]:
    """Return what one process found, its times or its ``memory``, or ``{"failed": reason}``."""
    request: dict[str, object] = {"base": str(base), "code": CODES[code], "path": path, "steps": count}
    try:
        python = lab.stack_python(LIST_STACK) if listed else lab.python("peft")
        module, variables = "harness.bench.programs.experts_train", GIVES_BACK if memory else None
        ran = lab.run(module, request, inputs=(base,), state="warm", python=python, variables=variables)
    except MeasurementError as error:
        return {"failed": lab.plain(str(error))}
    return dict(ran.found)


def _loads(lab: Lab, tick: Tick, *, family: str) -> dict[str, Any]:
    base = _base(lab, family)
    found = {}
    for code in CODES:
        found[code] = _train(lab, base, code, LOAD_PATH, count=1, memory=True)
        tick()
    lab.remove(base)
    return found


def _paths(lab: Lab, tick: Tick, *, paths: tuple[str, ...], listed: bool, count: int) -> dict[str, Any]:
    base = _base(lab, PATH_FAMILY)
    names = [f"{code} {path}" for code in PATH_CODES for path in paths]
    found: Runs = {name: [] for name in names}
    memory = {}
    for name in names:
        code, _, path = name.partition(" ")
        memory[name] = _train(lab, base, code, path, count=1, listed=listed, memory=True)
        tick()
    for order in rounds(names, count):
        for name in order:
            code, _, path = name.partition(" ")
            found[name].append(_train(lab, base, code, path, count=STEPS, listed=listed))
            tick()
    lab.remove(base)
    return {"runs": found, "memory": memory, "versions": lab.versions.get("experts_train", {})}


def _rate(run: dict[str, Any]) -> float:
    """Return tokens per second of the best step after the first: noise only ever slows a step down."""
    return float(run["tokens"] / min(run["step_seconds"][1:]))


def _failed(runs: Runs, *names: str) -> bool:
    return any("failed" in run for name in names for run in runs[name])


def _faster(runs: Runs, one: str, other: str) -> Estimate | None:
    """Return how many times as many tokens per second ``one`` has as ``other``."""
    if _failed(runs, one, other):
        return None
    return estimate(ratios([_rate(run) for run in runs[one]], [_rate(run) for run in runs[other]]))


def _step_peak(run: dict[str, Any]) -> int:
    return int(run["step_peak"]) + _mapped(run)


def _leaner(memory: dict[str, dict[str, Any]], one: str, other: str) -> float | None:
    """Return the step peak of ``one`` as a share of that of ``other``."""
    if any("failed" in memory[name] for name in (one, other)):
        return None
    return _step_peak(memory[one]) / _step_peak(memory[other])


def section(found: Found, settings: Settings) -> Section:
    """Return the section."""
    families = FAMILIES[:1] if settings.quick else FAMILIES
    loads = {family: found.get(f"experts/load/{family}", {}) for family in families}
    fused, listed = (found.get(step, {}) for step in ("experts/paths", "experts/list-paths"))
    return Section(
        title="QLoRA on fused experts",
        how=(
            (
                "A model whose two layers with experts have 64 of 3 x 768 x 768 weights, saved in bf16; a LoRA of rank "
                "16 on every expert; 256 tokens a step. *Code*: how weights are kept while training. Peaks are of "
                "anonymous memory above the imports, sampled every 2 ms, in one run each, in which glibc is told to "
                "give freed memory back at once; 16-bit experts that stay mapped from the file (qwen3_5_moe; all of "
                "transformers 4) count with their bytes."
            ),
            (
                "*Path*: how tokens go through experts. Fused parameters in transformers 5, with PEFT's LoRA on "
                "parameters: transformers' eager loop, its grouped_mm, ours. A list of MLPs in transformers 4, with "
                "PEFT's LoRA on each Linear (in nf4 bitsandbytes' Linears): transformers' loop, ours. Times are of "
                f"{ROUNDS} interleaved rounds, each run in a process of its own and counted with its best step after "
                "the first; of so few rounds the brackets are the lowest and the highest ratio."
            ),
        ),
        goals=_goals(loads, fused, listed),
        tables=(
            Table(
                title="Load and one training step, by transformers' grouped_mm",
                head=("family", "code", "load peak, MiB", "experts, MiB", "step peak, MiB"),
                rows=tuple(_load_row(family, code, loads[family].get(code)) for family in families for code in CODES),
            ),
            _path_table("Forward paths, a training step: fused experts (transformers 5)", fused, PATHS),
            _path_table("Forward paths, a training step: a list of experts (transformers 4)", listed, LIST_PATHS),
        ),
        notes=_notes(fused),
    )


def _notes(fused: dict[str, Any]) -> tuple[str, ...]:
    """Say what the grouped forward is for."""
    ours, theirs = (fused.get("memory", {}).get(f"nf4 {path}", {"failed": ""}) for path in (GROUPED, "grouped_mm"))
    if "failed" in ours or "failed" in theirs:
        return ()
    peaks = [mebibytes(_step_peak(run)) for run in (ours, theirs)]
    said = (
        f"A training step on experts in nf4 peaks at {peaks[0]} MiB with our grouped forward and at {peaks[1]} MiB "
        "with transformers' grouped_mm under PEFT, which multiplies every delta out and keeps the sum with the weights."
    )
    return (said,)


def _load_row(family: str, code: str, run: dict[str, Any] | None) -> tuple[str, ...]:
    if run is None or "failed" in run:
        return (family, code, "-" if run is None else f"failed: {run['failed']}", "-", "-")
    return (family, code, *map(mebibytes, (_load_peak(run), run["expert_bytes"], _step_peak(run))))


def _mapped(run: dict[str, Any]) -> int:
    """Return the bytes of experts that lie on disk as they are in memory.

    They were not copied to anonymous memory.
    """
    return int(run["expert_bytes"]) if run["load_peak"] < run["expert_bytes"] else 0


def _load_peak(run: dict[str, Any]) -> int:
    return max(int(run["load_peak"]), _mapped(run))


def _path_table(title: str, found: dict[str, Any], paths: tuple[str, ...]) -> Table:
    """Return the table of one kind of experts, each path beside all the others."""
    others = [path for path in paths if path != GROUPED]
    names = [(code, path) for code in PATH_CODES for path in paths] if found else []
    return Table(
        title=title,
        head=("base", "path", "tokens/s", "step peak, MiB", *(f"times {other}" for other in others)),
        rows=tuple(_path_row(found, code, path, others) for code, path in names),
    )


def _path_row(found: dict[str, Any], code: str, path: str, others: list[str]) -> tuple[str, ...]:
    name, runs = f"{code} {path}", found["runs"]
    memory = found["memory"][name]
    failed = next((run["failed"] for run in [memory, *runs[name]] if "failed" in run), None)
    if failed is not None:
        return (code, path, f"failed: {failed}", "-", *("-" for _ in others))
    middle = sorted(_rate(run) for run in runs[name])[len(runs[name]) // 2]
    versus = [_faster(runs, name, f"{code} {other}") for other in others]
    return (
        code,
        path,
        f"{middle:.0f}",
        mebibytes(_step_peak(memory)),
        *("-" if ratio is None else interval(ratio) for ratio in versus),
    )


def _goals(loads: dict[str, dict[str, Any]], fused: dict[str, Any], listed: dict[str, Any]) -> tuple[Goal, ...]:
    """Return the goals: the worst family of each load, and ours beside the best path that the releases have."""
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
    for found, best, what in ((fused, "grouped_mm", "grouped_mm"), (listed, "eager", "transformers 4's loop")):
        for code in PATH_CODES if found else ():
            ours, theirs = f"{code} {GROUPED}", f"{code} {best}"
            goals += [
                at_least(
                    f"tokens/s of our grouped forward / {what}, {code}", _faster(found["runs"], ours, theirs), 1.0
                ),
                bounded(
                    f"step peak of our grouped forward / {what}, {code}",
                    _leaner(found["memory"], ours, theirs),
                    1.0,
                    "",
                ),
            ]
    return tuple(goals)
