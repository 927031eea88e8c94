"""Kill runs again and again, and see that nothing is lost or torn: ``python tests/endurance/kill_drivers.py``.

A small profile is run by a driver that is killed with SIGKILL at a random moment, then run anew, until it gets to its
end. Then its results are forgotten, and it begins again, until so many drivers were killed. After each kill

- no process of the run is left,
- every result in the output folder can be read, and every kept one is what it says it is,
- what was kept before is kept still.

At the end of each round every cell that was kept has not been run again, and the results are those of a run that nobody
disturbed. Then two runs at once share an empty cache. Environments are those of the user's cache, whose kept results
are not touched. It takes some ten minutes, and prints what it saw; the exit code is 1 when something was not so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from same_results import findings  # noqa: E402  # found by the line above

from harness.envs import cache_dir  # noqa: E402
from harness.execution.deadman import TOKEN  # noqa: E402
from harness.execution.loading import load_found  # noqa: E402
from harness.execution.result_cache import ResultCache  # noqa: E402
from harness.execution.result_room import kept_results  # noqa: E402
from harness.result import CellResult  # noqa: E402

CELLS = "qwen3_moe/lora-[abcd]*@tf5.5.0-peft0.19.1-trl0.25.1"
SHARED = ("environments", "guards", "locks", "known-versions", "releases", "sources", "uv")
"""What of the user's cache is used: all but the results, and the code."""


@dataclass(kw_only=True)
class Bench:
    """The folders of a trial."""

    folder: Path
    cache: Path
    environment: Mapping[str, str]

    @classmethod
    def make(cls, folder: Path, *, shared: bool) -> Bench:
        """Make one; ``shared``: with the environments of the user's cache, else with none."""
        cache = folder / "cache"
        cache.mkdir(parents=True)
        for name in SHARED if shared else ():
            (cache_dir() / name).mkdir(parents=True, exist_ok=True)
            (cache / name).symlink_to(cache_dir() / name)
        scratch = folder / "tmp"
        scratch.mkdir()
        return cls(
            folder=folder,
            cache=cache,
            environment={**os.environ, "MOE_LORA_HARNESS_CACHE": str(cache), "TMPDIR": str(scratch)},
        )

    def start(self, out: str) -> subprocess.Popen[bytes]:
        """Start a run, on one core: gradients that several threads sum differ in their last digits from run to run."""
        command = [
            "taskset",
            "-c",
            str(min(os.sched_getaffinity(0))),
            sys.executable,
            "-m",
            "harness",
            "matrix",
            "--select",
            CELLS,
            "--jobs",
            "1",
            "--out",
        ]
        with (self.folder / f"{out}.log").open("ab") as log:
            return subprocess.Popen(
                [*command, str(self.folder / out)], cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )

    def kept(self) -> dict[str, CellResult]:
        """Return the kept results by their keys.

        Raises:
            ValueError: one is not what it says it is.
        """
        cache = ResultCache(self.cache / "results")
        said: list[str] = []
        found = {}
        for entry in kept_results(cache.root):
            if entry.whole:
                result = CellResult.model_validate(json.loads(entry.path.read_text())["result"])
                kept = cache.find(result.cell, entry.path.stem, warn=said.append)
                if kept is None:
                    raise ValueError(f"{entry.path} cannot be used: {said}")
                found[entry.path.stem] = kept.result
        return found

    def left(self) -> list[str]:
        """Return the processes of runs that are still there."""
        found = []
        for process in psutil.process_iter():
            try:
                variables = process.environ()
                if TOKEN in variables and variables.get("TMPDIR", "").startswith(self.environment["TMPDIR"]):
                    found.append(" ".join(process.cmdline()))
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found


@dataclass(kw_only=True)
class Seen:
    """What there was to see."""

    kills: int = 0
    rounds: int = 0
    results_read: int = 0
    kept_read: int = 0
    at_work: int = 0
    longest_leftover: float = 0.0
    half_written: int = 0
    wrong: list[str] = field(default_factory=list)

    def check(self, words: str, *, right: bool) -> None:
        """Write down what is not as it should be."""
        if not right:
            self.wrong.append(words)
            print(f"WRONG: {words}", flush=True)


def after_a_kill(bench: Bench, before: set[str], seen: Seen) -> set[str]:
    """Look at what a killed run has left; return the keys of what is kept."""
    began = time.monotonic()
    seen.at_work += bool(bench.left())
    while left := bench.left():
        if time.monotonic() - began > 20:
            seen.check(f"after 20 s there is still {left}", right=False)
            break
        time.sleep(0.05)
    seen.longest_leftover = max(seen.longest_leftover, time.monotonic() - began)
    out = bench.folder / "out"
    if [*out.glob("cells/*/*")]:
        seen.results_read += len(load_found([out]).results)
    seen.half_written += len([*out.rglob("*.tmp"), *(bench.cache / "results").rglob("*.tmp")])
    kept = bench.kept()
    seen.kept_read += len(kept)
    seen.check(f"of {len(before)} kept results {len(before - kept.keys())} are gone", right=before <= kept.keys())
    return set(kept)


def kill_drivers(bench: Bench, kills: int, longest: float, chance: random.Random) -> Seen:
    """Run the profile until so many drivers were killed, and every round came to its end."""
    seen = Seen()
    undisturbed = bench.start("undisturbed")
    undisturbed.wait()
    truth = findings(bench.folder / "undisturbed")
    seen.check("the run that nobody disturbed failed", right=undisturbed.returncode == 0)
    print(f"undisturbed: {len(truth)} cells", flush=True)
    while seen.kills < kills:
        shutil.rmtree(bench.cache / "results")
        shutil.rmtree(bench.folder / "out", ignore_errors=True)
        known: set[str] = set()
        while True:
            names = {bench_result.cell_id for bench_result in bench.kept().values()} if known else set()
            run = bench.start("out")
            try:
                run.wait(chance.uniform(0.2, longest) if seen.kills < kills else None)
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
                seen.kills += 1
                known = after_a_kill(bench, known, seen)
                print(f"kill {seen.kills}: {len(known)} of {len(truth)} kept", flush=True)
                continue
            break
        seen.rounds += 1
        seen.check(f"the last run of round {seen.rounds} ended with {run.returncode}", right=run.returncode == 0)
        found = load_found([bench.folder / "out"])
        seen.check("cells were planned and have no result", right=not found.planned)
        again = names & {result.cell_id for result in found.results if result.reused is None}
        seen.check(f"kept, and run again: {sorted(again)}", right=not again)
        now = findings(bench.folder / "out")
        other = sorted(name for name in truth if now.get(name) != truth[name])
        seen.check(f"round {seen.rounds} came to something else for {other}", right=now == truth)
        print(
            f"round {seen.rounds}: {len(found.results)} results, {len(names)} of them kept by killed runs", flush=True
        )
    return seen


def two_at_once(bench: Bench, truth: Path) -> Seen:
    """Two runs that begin at once with an empty cache: they make one environment, and come to the same."""
    seen = Seen()
    runs = [bench.start(name) for name in ("first", "second")]
    codes = [run.wait() for run in runs]
    environments = [*(bench.cache / "environments").iterdir()]
    kept = bench.kept()
    seen.check(f"the runs ended with {codes}", right=codes == [0, 0])
    seen.check(f"{len(environments)} environments were made", right=len(environments) == 1)
    for name in ("first", "second"):
        seen.check(f"the {name} came to something else", right=findings(bench.folder / name) == findings(truth))
    once = sorted(result.cell_id for result in kept.values())
    seen.check("not everything is kept, and once", right=once == sorted(findings(truth)))
    ran = [sum(it.reused is None for it in load_found([bench.folder / name]).results) for name in ("first", "second")]
    print(f"two at once: {len(kept)} results kept, {len(environments)} environment; of {len(findings(truth))} cells "
          f"{ran[0]} and {ran[1]} were run, the others reused", flush=True)  # fmt: skip
    return seen


def main() -> int:
    """Run the trial; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--longest", type=float, default=34.0, help="seconds after which a driver is killed at most")
    parser.add_argument("--seed", type=int, default=20261128)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-drivers-") as name:
        bench = Bench.make(Path(name) / "kills", shared=True)
        chance = random.Random(options.seed)  # noqa: S311  # moments, no secrets
        seen = kill_drivers(bench, options.kills, options.longest, chance)
        other = two_at_once(Bench.make(Path(name) / "two", shared=False), bench.folder / "undisturbed")
    print(
        f"{seen.kills} drivers killed in {seen.rounds} rounds, {seen.at_work} of them with processes at work, which "
        f"were gone {seen.longest_leftover:.1f} s later at most; {seen.results_read} results and {seen.kept_read} kept "
        f"ones read, none torn; {seen.half_written} times a file was found half-written under a name of its own; "
        f"{len(seen.wrong) + len(other.wrong)} things wrong; {time.monotonic() - began:.0f} s"
    )
    return int(bool(seen.wrong or other.wrong))


if __name__ == "__main__":
    sys.exit(main())
