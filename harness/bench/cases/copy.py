"""Merging against copying the same checkpoint on the same disk: wall time, memory, and how little is decoded when
little changes.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

from harness.bench import layouts
from harness.bench.case import Found, Step, Tick
from harness.bench.lab import Lab
from harness.bench.section import Goal, Section, Table, at_most, bounded, interval, mebibytes, seconds
from harness.bench.settings import Settings, size_text
from harness.bench.statistics import Estimate, estimate, ratios

ORDER = 1
PAIR = ("copy", "reference")
WHOLE = ("copy", "command")
KINDS = ("experts", "attention")
WORDS = {"experts": "every expert tensor changes", "attention": "only attention changes"}

RATIO, RATIO_UPPER = 1.1, 1.3
DECODED = 1.05
PEAK = 1024.0
"""MiB above what importing takes."""


def steps(settings: Settings) -> list[Step]:
    """Return the pairs at every size, cold, and warm at the first; whole commands, memory and reads come with them."""
    found = []
    for size in settings.sizes:
        found.append(Step(name=f"copy/cold-check/{size}", units=1, measure=partial(_cold_check, size=size)))
        for kind in KINDS:
            for state in ("cold", "warm") if size == settings.sizes[0] else ("cold",):
                count = settings.pairs_at(size)
                measure = partial(_series, names=PAIR, size=size, kind=kind, state=state, count=count)
                found.append(Step(name=f"copy/{size}/{kind}/{state}", units=count, measure=measure))
        if size == settings.sizes[0]:
            for kind in KINDS:
                measure = partial(_series, names=WHOLE, size=size, kind=kind, state="warm", count=settings.rounds)
                found.append(Step(name=f"copy/{size}/{kind}/command", units=settings.rounds, measure=measure))
            found.append(Step(name="copy/reads", units=1, measure=partial(_reads, size=size)))
    return found


def _series(lab: Lab, tick: Tick, **options: Any) -> dict[str, Any]:
    return lab.series(**options, tick=tick)


def _cold_check(lab: Lab, tick: Tick, *, size: int) -> dict[str, float]:
    share = lab.cold_check(size)
    tick()
    return {"cached_share": share}


def _reads(lab: Lab, tick: Tick, *, size: int) -> dict[str, Any]:
    base, adapter, out = lab.base(size), lab.adapter(size, "attention"), lab.output("reads")
    request: dict[str, object] = {"base": str(base), "adapter": str(adapter), "out": str(out)}
    found = lab.run("harness.bench.programs.reads", request, inputs=(base, adapter), state="warm").found
    lab.remove(out)
    tick()
    layout = layouts.qwen3_moe_of(size)
    changed = layout.layers * sum(layouts.BF16 * prod(shape) for shape in layout.attention.values())
    return {**found, "bytes_changed": changed}


def compared(series: Found, ours: str, theirs: str, value: str = "seconds") -> Estimate | None:
    """Return how many times as long ``ours`` took as ``theirs``, None where either failed."""
    mine, other = series.get(ours), series.get(theirs)
    if not isinstance(mine, list) or not isinstance(other, list) or not mine or len(mine) != len(other):
        return None
    return estimate(ratios([run[value] for run in mine], [run[value] for run in other]))


def times(series: Found, name: str, value: str = "seconds") -> str:
    """Return a contender's times in words, or that it failed."""
    runs = series.get(name)
    return seconds([run[value] for run in runs]) if isinstance(runs, list) and runs else "failed"


def _line(where: str, series: Found, ours: str) -> tuple[str, ...]:
    ratio = compared(series, ours, "copy")
    pairs = str(ratio.pairs) if ratio else "0"
    return (where, pairs, times(series, "copy"), times(series, ours), interval(ratio) if ratio else "-")


def decoded(reads: Found | None) -> tuple[float | None, str]:
    """Return bytes decoded over bytes changed, None where it cannot be known, and how it was measured."""
    if reads is None:
        return None, "not measured"
    changed = reads["bytes_changed"]
    if reads["bytes_decoded"] is not None:
        return reads["bytes_decoded"] / changed, "as the engine states in its report"
    if reads["bytes_read"] < changed:
        return None, "the engine reads by a way that is not counted"
    return reads["bytes_read"] / changed, "every byte of the base's tensors that is read into memory, decoded or not"


def peak(runs: object) -> float | None:
    """Return the largest peak of some runs above their imports, MiB."""
    return max(run["rss_above"] for run in runs) / 2**20 if isinstance(runs, list) and runs else None


def section(found: Found, settings: Settings) -> Section:
    """Return the section."""
    goals: list[Goal] = []
    lines: list[tuple[str, ...]] = []
    commands: list[tuple[str, ...]] = []
    memory: list[tuple[str, ...]] = []
    for size in settings.sizes:
        peaks: list[float] = []
        for kind in KINDS:
            for state in ("cold", "warm"):
                series = found.get(f"copy/{size}/{kind}/{state}")
                if series is None:
                    continue
                where = f"{size_text(size)}, {WORDS[kind]}, {state}"
                lines.append(_line(where, series, "reference"))
                goals.append(at_most(f"merge / copy, {where}", compared(series, *PAIR[::-1]), RATIO, RATIO_UPPER))
                highest = peak(series.get("reference"))
                peaks += [highest] if highest is not None else []
                if highest is not None:
                    before = max(run["rss_before"] for run in series["reference"])
                    memory.append((where, mebibytes(before), f"{highest:.0f}"))
            if (series := found.get(f"copy/{size}/{kind}/command")) is not None:
                commands.append(_line(f"{size_text(size)}, {WORDS[kind]}, warm", series, "command"))
        if lines:
            goals.append(
                bounded(f"peak memory above imports, {size_text(size)}", max(peaks, default=None), PEAK, "MiB")
            )
    share, how = decoded(found.get("copy/reads"))
    goals.append(bounded("bytes decoded / bytes changed, only attention changes", share, DECODED, ""))
    head = ("what", "pairs", "`cp -r` + fsync, s", "merge, s", "ratio")
    return Section(
        title="Merging against copying",
        how=(
            (
                "Wall time of `plan_merge` and `merge`, imports aside, beside `cp -r` of the base with an fsync of"
                " every copied file and directory: the"
                " merge syncs its output too. Each pair runs one after the other, every run in a fresh process, in"
                " alternating order; before each the old"
                " output is deleted and everything dirty is written out. Cold: `posix_fadvise(DONTNEED)` on every"
                " input file"
                f"{_cold_words(found, settings)}. Warm: every input file read from end to end just before."
            ),
            "Times are medians with the range, ratios medians over pairs with a 95 % bootstrap interval.",
            (
                f"Memory is the high-water mark of resident memory (`VmHWM`{_reset_words(found)}) less what was"
                " resident after imports."
            ),
            f"Bytes decoded: {how}.",
        ),
        goals=tuple(goals),
        tables=(
            Table(title="Imports aside", head=head, rows=tuple(lines)),
            Table(title="The whole command, `harness merge`, imports included", head=head, rows=tuple(commands)),
            Table(
                title="Memory of the merging process, MiB",
                head=("what", "after imports", "peak above that"),
                rows=tuple(memory),
            ),
        ),
    )


def _reset_words(found: Found) -> str:
    """Say whether the peak is that of the merge alone."""
    runs = [run for name, step in found.items() if "/command" not in name for run in _runs(step, "reference")]
    return (
        ", reset after imports"
        if all(run["peak_was_reset"] for run in runs)
        else ", imports included: this kernel does not reset it"
    )


def _runs(step: Any, name: str) -> list[Any]:
    runs = step.get(name) if isinstance(step, dict) else None
    return runs if isinstance(runs, list) else []


def _cold_words(found: Found, settings: Settings) -> str:
    shares = [found[key]["cached_share"] for size in settings.sizes if (key := f"copy/cold-check/{size}") in found]
    if not shares:
        return ""
    return (
        f", after which `mincore` finds {max(shares):.1%} of their pages cached"
        " (a host below a virtual disk may have its own cache)"
    )
