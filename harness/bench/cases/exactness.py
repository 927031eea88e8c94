"""How exact each contender's output is, on the same checkpoint with the same adapter."""

from __future__ import annotations

from functools import partial
from typing import Any

from harness.bench import adapters, layouts
from harness.bench.case import Found, Step, Tick
from harness.bench.cases.others import titled
from harness.bench.lab import Lab, contender
from harness.bench.process import MeasurementError
from harness.bench.section import Section, Table
from harness.bench.settings import Settings, size_text

ORDER = 3
CONTENDERS = ("reference", "reference_float64", "peft", "unsloth_zoo")


def steps(settings: Settings) -> list[Step]:
    """Return the one step: everybody merges once, and one pass judges all outputs."""
    return [Step(name="exactness", units=len(CONTENDERS) + 1, measure=partial(_measure, size=settings.sizes[0]))]


def _measure(lab: Lab, tick: Tick, *, size: int) -> dict[str, Any]:
    outputs = {name: lab.output(name) for name in CONTENDERS}
    failed: dict[str, str] = {}
    for name, out in outputs.items():
        try:
            lab.merge(name, size, "experts", "warm", out=out)
        except MeasurementError as error:
            failed[name] = lab.plain(str(error))
        tick()
    layout = layouts.qwen3_moe_of(size)
    request: dict[str, object] = {
        "base": str(lab.base(size)),
        "adapter": str(lab.adapter(size, "experts")),
        "merged": {name: str(out) for name, out in outputs.items() if name not in failed},
        "sizes": {
            "layers": layout.layers,
            "experts": layout.experts,
            "width": layout.width,
            "rank": adapters.RANK,
            "scaling": adapters.SCALING,
        },
    }
    judged = lab.run("harness.bench.programs.exactness", request, inputs=(), state="warm").found
    lab.remove(*outputs.values())
    tick()
    return {"judged": judged, "failed": failed, "versions": {name: lab.versions.get(name, {}) for name in CONTENDERS}}


def share(part: int, whole: int) -> str:
    """Return a share in per cent, with as many decimals as it takes to tell it from all and nothing."""
    if whole == 0:
        return "-"
    if part in {0, whole}:
        return "0 %" if part == 0 else "100 %"
    value = 100 * part / whole
    for decimals in range(2, 8):
        text = f"{value:.{decimals}f}"
        if 0 < float(text) < 100:  # noqa: PLR2004 - per cent
            return f"{text} %"
    return "almost 0 %" if value < 50 else "almost 100 %"  # noqa: PLR2004 - the nearer end


def section(found: Found, settings: Settings) -> Section:
    """Return the section."""
    result = found.get("exactness", {"judged": {}, "failed": {}, "versions": {}})
    lines = []
    for name in CONTENDERS:
        counted = result["judged"].get(name)
        if counted is not None:
            changed = counted["changed"]
            lines.append((
                titled(name, result["versions"].get(name, {})),
                f"{changed:,}",
                share(counted["exact"], changed),
                share(counted["beyond"], changed),
                f"{counted['largest']:.3g}",
            ))  # fmt: skip
    return Section(
        title="Exactness",
        how=(
            (
                f"The {size_text(settings.sizes[0])} checkpoint, every expert tensor changes; every element of every"
                " such tensor. Deltas are some 2 % of the weights: the larger they are, the more a delta that is"
                " rounded on its own costs. Changed: the right result or the"
                " contender's differs from the base. Right: base + scaling · B · A in float64, computed from the files"
                " by torch, rounded to bf16 once. Ulp: the"
                " unit in the last place of bf16 at max(|base|, |delta|, |result|), measured from the float64 result."
            ),
        ),
        tables=(
            Table(
                title="Changed bf16 elements",
                head=("contender", "changed", "correctly rounded", "further than 1 ulp", "furthest of the others, ulp"),
                rows=tuple(lines),
            ),
        ),
        notes=tuple(f"{contender(name).TITLE}: `{reason}`" for name, reason in result["failed"].items()),
    )
