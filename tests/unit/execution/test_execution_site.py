"""What runs on a node of a cluster: orders in, answers out, and nothing else goes back. No cluster is needed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from execution_helpers import cell, child_environment, fake_environment, fake_package, stack

from harness.contract.stages import StageName
from harness.envs import Unresolvable
from harness.errors import EnvironmentFailedError, VersionNotFoundError
from harness.execution import site
from harness.execution.bundle import bundle_sha256
from harness.execution.deadman import TOKEN, carriers
from harness.execution.fingerprint import Fingerprints
from harness.execution.services import CellSettings, Prepare
from harness.execution.site import Answer, EnvironmentThere, Failed, Order, Site, Terms, prepare_here, run_here
from harness.execution.supervise import Limits
from harness.matrix.cell import Cell, Stack

SETTINGS = CellSettings(limits=Limits(seconds=60, grace=0.3, interval=0.05), bands={"kl_max": 1e-9}, threads=1)


class Making:
    """Makes environments, and counts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[str] = []

    def __call__(self, wanted: Stack) -> object:  # noqa: D102  # as the class says
        self.made.append(wanted.peft)
        return fake_environment(self.folder, wanted)


@pytest.fixture
def terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terms]:
    """Terms that this process can meet, as a process of a node that has met none yet."""
    monkeypatch.setenv("MOE_LORA_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(site, "_here", None)
    package = fake_package(tmp_path)
    yield Terms(
        prepare=Making(tmp_path),  # type: ignore[arg-type]  # a fake environment has what is needed of one
        child_environment=child_environment,
        processes="warm",
        code_sha256=bundle_sha256(package),
        package=package,
    )
    if site._here is not None:
        site._here.close()


def order(terms: Terms, of: Cell | None = None) -> Order:
    return Order(cell=of or cell(), settings=SETTINGS, terms=terms)


def test_a_cell_is_run_and_answered_for(terms: Terms) -> None:
    stages: list[StageName] = []
    answer = run_here(order(terms, cell("slow")), stages.append)

    assert isinstance(answer, Answer)
    assert answer.result.outcome == "pass"
    assert "train" in stages
    assert answer.log.startswith(b"$ ")
    assert b"cwd" in answer.log
    fingerprints = Fingerprints(
        code_sha256=terms.code_sha256, settings=lambda _: SETTINGS, child_environment=child_environment
    )
    assert answer.key == fingerprints.of(cell("slow"), "holds peft 0.19.1"), "the key is that of a run here"
    assert answer.result.log == f"cells/qwen3_moe/{cell('slow').file_stem}.log"


def test_an_environment_is_made_once_and_its_worker_stays_warm(terms: Terms) -> None:
    making = terms.prepare
    assert isinstance(making, Making)
    there = prepare_here(stack(), terms, lambda _: None)
    logs = []
    for each in (cell(seed=1), cell(seed=2), cell(peft="0.18.1"), cell(seed=3)):
        answer = run_here(order(terms, each), lambda _: None)
        assert isinstance(answer, Answer)
        logs.append(answer.log.decode().splitlines()[0].partition("forked from process ")[2])

    assert isinstance(there, EnvironmentThere)
    assert there.identity == "holds peft 0.19.1"
    assert making.made == ["0.19.1", "0.18.1"]
    assert logs[0] == logs[1] != "", "one worker for both"
    assert len({logs[0], logs[2], logs[3]}) == 3, "one stack is kept warm at a time"


def test_what_was_left_behind_goes_with_the_site(terms: Terms) -> None:
    run_here(order(terms), lambda _: None)
    here = site._here
    assert here is not None
    token, scratch = os.environ[TOKEN], here.scratch
    assert carriers(token) != []
    assert scratch.is_dir()
    here.close()

    assert carriers(token) == []
    assert not scratch.exists()


@pytest.mark.parametrize(
    "error",
    [
        Unresolvable("peft needs what there is not"),
        VersionNotFoundError("no peft 9", remedy="take another"),
        EnvironmentFailedError("no room", remedy="make some"),
    ],
)
def test_what_goes_wrong_with_an_environment_travels_in_words(
    terms: Terms, error: Unresolvable | VersionNotFoundError | EnvironmentFailedError
) -> None:
    def failing(_: Stack) -> object:
        raise error

    prepare: Prepare = failing  # type: ignore[assignment]  # it returns nothing
    failed = Terms(**{**vars(terms), "prepare": prepare})
    answers = [run_here(order(failed), lambda _: None), prepare_here(stack(), failed, lambda _: None)]

    for answer in pickle.loads(pickle.dumps(answers)):  # noqa: S301  # our own words
        assert isinstance(answer, Failed)
        again = answer.error()
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert getattr(again, "remedy", None) == getattr(error, "remedy", None)


def test_a_node_without_room_says_so(terms: Terms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOE_LORA_HARNESS_CACHE", str(tmp_path / "file" / "cache"))

    for answer in (run_here(order(terms), lambda _: None), prepare_here(stack(), terms, lambda _: None)):
        assert isinstance(answer, Failed)
        assert (answer.kind, type(answer.error())) == ("environment", EnvironmentFailedError)
        assert "the harness's code" in answer.message.lower()


def test_other_code_than_the_drivers_is_refused(terms: Terms) -> None:
    other = Terms(**{**vars(terms), "code_sha256": "0" * 64})
    answer = run_here(order(other), lambda _: None)

    assert isinstance(answer, Failed)
    assert "not that of the driver" in answer.message
    with pytest.raises(EnvironmentFailedError):
        Site(other)
