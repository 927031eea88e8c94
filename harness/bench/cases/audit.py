"""``harness audit`` against ``cmp``, everything in the page cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from functools import partial
from typing import Any

from harness.bench.case import Found, Step, Tick
from harness.bench.cases.copy import compared, peak, times
from harness.bench.lab import Lab
from harness.bench.pairs import rounds
from harness.bench.section import Section, Table, at_most, interval
from harness.bench.settings import Settings, size_text

ORDER = 4
GOAL = 1.5
PAIR = ("compare", "audit")


def steps(settings: Settings) -> list[Step]:
    """Return the one series."""
    count = max(settings.rounds, settings.pairs // 2)
    return [Step(name="audit", units=count, measure=partial(_measure, size=settings.sizes[0], count=count))]


def _measure(lab: Lab, tick: Tick, *, size: int, count: int) -> dict[str, Any]:
    base, adapter, merged, copied = (
        lab.base(size),
        lab.adapter(size, "experts"),
        lab.output("audited"),
        lab.output("same"),
    )
    lab.merge("reference", size, "experts", "warm", out=merged)
    shutil.copytree(base, copied)
    folders = {
        name: str(path) for name, path in {"base": base, "adapter": adapter, "merged": merged, "copy": copied}.items()
    }
    inputs = {"compare": (base, copied), "audit": (base, adapter, merged)}
    found: dict[str, Any] = {"compare": [], "audit": [], "exit_codes": []}
    for order in rounds(PAIR, count):
        for name in order:
            ran = lab.run(f"harness.bench.programs.{name}", dict(folders), inputs=inputs[name], state="warm")
            found[name].append(ran.to_json())
            if name == "audit":
                found["exit_codes"].append(ran.found["exit_code"])
        tick()
    found["whole_command"] = _whole(folders)
    lab.remove(merged, copied)
    return found


def _whole(folders: dict[str, str]) -> float:
    """Return the seconds of the whole command, once."""
    options = [word for name in ("base", "adapter", "merged") for word in (f"--{name}", folders[name])]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "harness", "audit", *options], check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - started, 3)


def section(found: Found, settings: Settings) -> Section:
    """Return the section."""
    result = found.get("audit", {})
    ratio = compared(result, "audit", "compare")
    highest = peak(result.get("audit"))
    lines = (
        ("`cmp` of the base and a copy of it", times(result, "compare"), "-", "-"),
        (
            "audit of the merged checkpoint",
            times(result, "audit"),
            interval(ratio) if ratio else "-",
            "-" if highest is None else f"{highest:.0f}",
        ),
    )
    whole = result.get("whole_command")
    return Section(
        title="Auditing against comparing",
        how=(
            (
                f"The {size_text(settings.sizes[0])} checkpoint merged by our engine, every expert tensor changed;"
                " everything in the page cache, pairs interleaved, imports"
                " aside. `cmp` stops at the first byte that differs, so it compares the base with a copy of itself: as"
                " many bytes, read to the end."
            ),
        ),
        goals=(at_most("audit / cmp, imports aside", ratio, GOAL),),
        tables=(Table(title="Times", head=("what", "s", "ratio", "peak above imports, MiB"), rows=lines),),
        notes=(
            *((f"The whole command `harness audit` took {whole:.1f} s, imports included.",) if whole else ()),
            *(("The audit did not accept the merge.",) if any(result.get("exit_codes", ())) else ()),
        ),
    )
