"""Planning a merge into a checkpoint of DeepSeek-V3's size, with an adapter that has a pair for every expert's every
Linear.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from harness.bench import adapters, layouts
from harness.bench.case import Found, Step, Tick
from harness.bench.checkpoints import write_hollow
from harness.bench.lab import Lab
from harness.bench.section import Section, Table, bounded, mebibytes, seconds
from harness.bench.settings import Settings

ORDER = 5
SECONDS, MEMORY = 10.0, 1024.0


def steps(settings: Settings) -> list[Step]:
    """Return the one step."""
    count = min(settings.rounds, 3)
    return [Step(name="plan/deepseek-v3", units=count, measure=partial(_measure, count=count))]


def _measure(lab: Lab, tick: Tick, *, count: int) -> dict[str, Any]:
    layout = layouts.DeepseekV3()
    base, adapter = lab.output("deepseek-base"), lab.output("deepseek-adapter")
    claimed = write_hollow(base, adapter, layout, adapters.of_single_experts(layout))
    request: dict[str, object] = {"base": str(base), "adapter": str(adapter)}
    runs, found = [], {}
    for _ in range(count):
        # No state is prepared: filling the cache would read a terabyte of holes, and only headers matter.
        ran = lab.run("harness.bench.programs.plan", request, inputs=(), state="warm")
        runs.append({**ran.to_json(), "peak": ran.rss_before + ran.rss_above})
        found = ran.found
        tick()
    lab.remove(base, adapter)
    return {"runs": runs, "claimed": claimed, **found}


def section(found: Found, _settings: Settings) -> Section:
    """Return the section."""
    result = found.get("plan/deepseek-v3", {"runs": []})
    runs = result["runs"]
    slowest = max((run["seconds"] for run in runs), default=None)
    highest = max((run["peak"] for run in runs), default=None)
    line = (
        f"{result.get('tensors', 0):,}",
        f"{result.get('claimed', 0) / 1e12:.2f}",
        f"{result.get('attempted', 0):,}",
        seconds([run["seconds"] for run in runs]) if runs else "failed",
        mebibytes(highest) if highest is not None else "-",
    )
    return Section(
        title="Planning at DeepSeek-V3's size",
        how=(
            (
                "61 layers, 256 experts, 163 shards, bf16, and a rank 16 adapter on every expert: true headers, holes"
                " for data. Seconds without imports, memory"
                " of the whole process. torch is not imported."
            ),
        ),
        goals=(
            bounded("planning DeepSeek-V3, slowest", slowest, SECONDS, "s"),
            bounded("memory of planning DeepSeek-V3", None if highest is None else highest / 2**20, MEMORY, "MiB"),
        ),
        tables=(
            Table(
                title="Plan",
                head=("tensors", "TB, holes included", "tensors that change", "s", "peak, MiB"),
                rows=(line,),
            ),
        ),
    )
