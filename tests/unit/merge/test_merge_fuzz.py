"""Hostile input by the thousand: whatever is in the files, the engine refuses it by name or does it right, in little
time and memory.

A case is a number (``hostile_cases``), so each failure names the line that runs it again. A slice runs here; ``nox -s
tests_nightly`` runs a hundred thousand. The last tests are the fuzz's own controls: an engine that crashes, hangs,
swells or leaves something behind is noticed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import hostile_cases
import pytest
from hostile_cases import Broken, run_case
from hostile_samples import Seed, seeds

from harness.merge import InputRefusedError

BATCH = Path(__file__).with_name("hostile_batch.py")
SLICE = 1500
NIGHTLY, NIGHTLY_BATCH = 100_000, 5000
SLOWEST = 0.1
"""Seconds per case, on average, after which a batch is taken to hang; about a hundredth is usual."""


def run_batch(first: int, count: int) -> Counter[str]:
    """Run cases in a process of their own and return how often each outcome occurred; what broke is a failure here."""
    command = [sys.executable, str(BATCH), str(first), str(count)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 + SLOWEST * count, check=False)
    except subprocess.TimeoutExpired as error:
        last = bytes(error.stderr or b"").decode().split()[-1:]
        pytest.fail(f"the batch hangs: python {BATCH.name} {' '.join(last)} 1 -v")
    if done.returncode not in {0, 1} or not done.stdout:
        pytest.fail(f"the batch ended with {done.returncode}: python {BATCH.name} … 1 -v\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    broken = "\n".join(result["broken"])
    assert not broken, f"{result['broken_count']} cases; python {BATCH.name} <case> 1 -v\n{broken}"
    return Counter(result["outcomes"])


def reaches_everything(outcomes: Counter[str]) -> bool:
    """Whether the cases got to every call, and past the door: results of each, and refusals from every stage."""
    called = {"merged", "planned", "inspected", "converted", "audited, exit 0", "audited, exit 1"}
    refusals = {
        "CorruptFileError", "UnsafePathError", "InconsistentCheckpointError", "UnsupportedBaseError",
        "MalformedAdapterError", "UnsupportedAdapterError",
        "AdapterMismatchError", "NonFiniteError", "UnsafePatternError",
    }  # fmt: skip
    return outcomes.keys() >= called | {f"refused {name}, exit 5" for name in refusals}


@pytest.mark.parametrize("first", [0, 200_000])
def test_a_slice_of_hostile_inputs_is_refused_or_done_right(first: int) -> None:
    outcomes = run_batch(first, SLICE)

    assert outcomes.total() == SLICE
    assert reaches_everything(outcomes), sorted(outcomes)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_hostile_inputs_are_refused_or_done_right() -> None:
    """``pytest -m nightly -rP`` prints the counts."""
    with ThreadPoolExecutor(2) as pool:
        batches = pool.map(lambda first: run_batch(first, NIGHTLY_BATCH), range(0, NIGHTLY, NIGHTLY_BATCH))
        outcomes = sum(batches, Counter())
    sys.stdout.write("\n".join(f"{count:7} {outcome}" for outcome, count in outcomes.most_common()) + "\n")

    assert outcomes.total() == NIGHTLY
    assert reaches_everything(outcomes), sorted(outcomes)


def test_a_case_is_its_number(tmp_path: Path) -> None:
    """The same number writes the same bytes and has the same outcome."""
    outcomes = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        hostile_cases.prepare(Random(17), seeds()[0], folder)  # noqa: S311 - nothing secret
        files = {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }
        (tmp_path / f"{name}-run").mkdir()
        outcomes.append((files, run_case(17, tmp_path / f"{name}-run")))

    assert outcomes[0] == outcomes[1]


# --- controls -------------------------------------------------------------------------------------------------------


def raises_another_error(_random: Random, _seed: Seed, _folder: Path) -> str:
    raise KeyError("gate_up_proj")


def runs_for_ever(_random: Random, _seed: Seed, _folder: Path) -> str:
    while True:
        pass


def waits_for_ever(_random: Random, _seed: Seed, _folder: Path) -> str:
    time.sleep(60)
    return "planned"


def swells(_random: Random, _seed: Seed, _folder: Path) -> str:
    return "planned" if bytes(bytearray(b"x") * 100_000_000) else ""


def leaves_something(_random: Random, _seed: Seed, folder: Path) -> str:
    (folder / ".out.partial-1").mkdir()
    raise InputRefusedError("refused")


def says_too_much(_random: Random, _seed: Seed, _folder: Path) -> str:
    error = InputRefusedError("")
    error.message = "x" * 10_000
    raise error


def prints_no_json(_random: Random, _seed: Seed, _folder: Path) -> str:
    hostile_cases._strict({"norm": float("nan")})
    return "merged"


def publishes_half(random: Random, seed: Seed, folder: Path) -> str:
    plan = hostile_cases._plan(random, Seed(name=seed.name, files=seed.files, adapters=seed.adapters), folder)
    (folder / "out").mkdir()
    for path in (folder / "base").iterdir():
        (folder / "out" / path.name).write_bytes(path.read_bytes())
    hostile_cases.check_checkpoint(plan, folder / "out")
    return "merged"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (raises_another_error, "KeyError: 'gate_up_proj'"), (runs_for_ever, "Hung"), (waits_for_ever, "Hung"),
        (swells, "took"),
        (leaves_something, "partial-1"), (says_too_much, "10000 characters"), (prints_no_json, "not JSON compliant"),
    ],
)  # fmt: skip
def test_an_engine_that_misbehaves_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., str], said: str
) -> None:
    monkeypatch.setattr(hostile_cases, "CALLS", ((call, 1),))
    monkeypatch.setattr(hostile_cases, "SECONDS", 0.3)
    monkeypatch.setattr(hostile_cases, "WALL_SECONDS", 1.5)

    with pytest.raises(Broken, match=said):
        run_case(1, tmp_path)


def test_output_that_is_not_whole_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantised base copied as it is: the planned keys are not there."""
    quantised = next(seed for seed in seeds() if seed.name == "bnb-4bit")
    monkeypatch.setattr(hostile_cases, "seeds", lambda: (quantised,))
    monkeypatch.setattr(hostile_cases, "prepare", lambda _random, seed, folder: _write(seed, folder))
    monkeypatch.setattr(hostile_cases, "CALLS", ((publishes_half, 1),))

    with pytest.raises(Broken, match="planned keys"):
        run_case(1, tmp_path)


def _write(seed: Seed, folder: Path) -> tuple[str, ...]:
    for path, data in seed.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return ()
