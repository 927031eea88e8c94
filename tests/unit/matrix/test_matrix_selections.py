"""``[[selections]]``: from selectors and offers to stacks, and from those to cells."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from harness.errors import ConfigurationError, NothingSelectedError, UnknownNameError
from harness.matrix.catalogue import Catalogue
from harness.matrix.cell import Cell
from harness.matrix.config import Block, MatrixConfig
from harness.matrix.generated import Generated, generate_stacks
from harness.matrix.plan import Selection, all_cells, needed_selections, plan_cells, reasons
from harness.matrix.releases import Offer, Release
from harness.matrix.selections import VersionSelection
from harness.matrix.sources import Source, SourceSelector

NOW = datetime(2026, 11, 28, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=90)
OFFERED = {
    "transformers": ("5.24.0", "5.23.0", "5.22.1", "5.22.0", "4.57.6", "5.25.0rc1"),
    "peft": ("0.21.2", "0.20.0", "0.19.1"),
    "trl": ("1.16.0", "1.4.0", "0.25.1"),
}
Load = Callable[..., MatrixConfig]


@dataclass
class Answers:
    """An index with a few releases, and a resolver that takes the newest trl."""

    uploads: dict[str, datetime] = field(default_factory=dict)
    new: tuple[str, ...] = ()
    resolved: list[list[str]] = field(default_factory=list)

    def offer(self, package: str) -> Offer:
        """Return what is offered."""
        releases = [Release(version=it, uploaded=self.uploads.get(it, LONG_AGO)) for it in OFFERED[package]]
        return Offer(package=package, releases=tuple(releases), asked=NOW, new=self.new)

    def build(self, package: str, selector: SourceSelector) -> tuple[str, Source]:
        """Return a commit."""
        return "5.26.0.dev0", Source(kind=selector.kind, digest="1a2b3c4d" * 5, location=f"git+https://h/{package}")

    def choose(self, requirements: Sequence[str], *, pre: Collection[str]) -> Mapping[str, str]:
        """Take the newest trl."""
        assert not pre
        self.resolved.append(sorted(requirements))
        return {"trl": "1.16.0"}

    def today(self) -> date:
        """Return the day."""
        return NOW.date()

    def uploaded(self, versions: Mapping[str, str]) -> Mapping[str, datetime | None]:
        """Return a time for each."""
        return dict.fromkeys(versions, LONG_AGO)

    def newest(self, package: str, *, pre: bool) -> str:
        """Not asked for here."""
        raise AssertionError(package, pre)

    oldest = newest


def made(config: MatrixConfig, answers: Answers | None = None, **fields: Any) -> Generated:
    selection = VersionSelection.model_validate({"name": "found", **fields})
    return generate_stacks(config, selection, answers or Answers(), now=NOW)


def ids(generated: Generated) -> list[str]:
    return [stack.id for stack in generated.stacks]


def test_selected_versions_are_combined(config: MatrixConfig) -> None:
    found = made(config, transformers="latest-minors:2", peft=["latest", "==0.19.1"], trl="latest")

    assert ids(found) == [
        "tf5.24.0-peft0.21.2-trl1.16.0",
        "tf5.24.0-peft0.19.1-trl1.16.0",
        "tf5.23.0-peft0.21.2-trl1.16.0",
        "tf5.23.0-peft0.19.1-trl1.16.0",
    ]
    assert found.reasons[found.stacks[-1].key] == "transformers latest-minors:2, peft ==0.19.1, trl latest"
    assert found.news == ()


def test_strategies_and_conditions_are_obeyed(config: MatrixConfig) -> None:
    wide = {"transformers": ">=4.57", "peft": ">=0.19", "trl": ">=0.25"}

    assert len(made(config, **wide).stacks) == 5 * 3 * 3
    assert len(made(config, **wide, pre=True).stacks) == 6 * 3 * 3
    assert ids(made(config, **wide, strategy="extremes"))[:2] == [
        "tf5.24.0-peft0.21.2-trl1.16.0",
        "tf4.57.6-peft0.19.1-trl0.25.1",
    ]
    few = made(config, **wide, include=["transformers>=5.23", "transformers<5"], exclude=["peft<0.20, transformers>=5"])
    # two new transformers with two peft, one old transformers with three; three trl each
    assert len(few.stacks) == (2 * 2 + 3) * 3
    assert all("peft0.19.1" not in it or "tf4" in it for it in ids(few))
    assert 15 <= len(made(config, **wide, strategy="pairwise").stacks) < 45


def test_a_version_written_in_two_ways_is_one_stack_and_the_declared_one(config: MatrixConfig) -> None:
    declared = config.declared[2]
    both = made(config, transformers=["4.57.6", "5.23.0", "5.23"], peft="0.21.2", trl=["latest", "1.16"])
    short = made(config, transformers="5.23", peft="0.21.2", trl="1.16")

    assert ids(both) == [declared.id, "tf4.57.6-peft0.21.2-trl1.16.0"]
    assert both.reasons[declared.key] == "transformers 5.23.0, peft 0.21.2, trl latest"
    assert short.stacks == (declared,)


def test_pins_and_declared_stacks_are_as_ever(config: MatrixConfig) -> None:
    found = made(config, transformers=["4.57.6", "5.23.0"], peft=["0.19.1", "0.21.2"], trl=["0.25.1", "1.16.0"])
    stacks = {stack.id: stack for stack in found.stacks}

    assert stacks["tf4.57.6-peft0.21.2-trl1.16.0"].pins["datasets"] == "5.0.1"
    declared = config.declared[2]
    assert stacks[declared.id] is declared
    assert declared.pins["torch"] == "2.12.0"


def test_what_is_not_named_is_completed_by_the_resolver(config: MatrixConfig) -> None:
    answers = Answers()
    found = made(config, answers, transformers="latest-minors:2", peft="latest")

    assert ids(found) == ["tf5.24.0-peft0.21.2-trl1.16.0", "tf5.23.0-peft0.21.2-trl1.16.0"]
    assert "trl by the resolver" in found.reasons[found.stacks[0].key]
    assert answers.resolved[0] == ["peft==0.21.2", "torch==2.13.0", "transformers==5.24.0", "trl>=0.18"]


def test_what_is_new_runs_first_and_is_said(config: MatrixConfig) -> None:
    wide = {"transformers": "latest-minors:2", "peft": ["0.21.2", "0.20.0"], "trl": ">=1.4"}
    uploads = {"1.4.0": NOW - timedelta(days=2)}
    found = made(config, Answers(uploads=uploads), **wide)

    assert found.news == ("trl 1.4.0 is new: uploaded 2 days ago.",)
    assert ["trl1.4.0" in it for it in ids(found)] == [True] * 4 + [False] * 4
    seen = made(config, Answers(new=("5.23.0",)), **wide)
    assert seen.news == ("transformers 5.23.0 is new: it was not there when the indexes were last asked.",)
    assert seen.new == {it.key for it in seen.stacks if it.transformers == "5.23.0"}
    assert [it.key for it in seen.stacks[: len(seen.new)]] == [it.key for it in seen.stacks if it.key in seen.new] != []
    assert ids(seen)[0].startswith("tf5.23.0")


def test_a_commit_stands_beside_releases(config: MatrixConfig) -> None:
    found = made(config, transformers=["git+https://h/transformers@main", "latest"], peft="latest", trl="latest")

    assert ids(found) == ["tf5.26.0.dev0.git.1a2b3c4d-peft0.21.2-trl1.16.0", "tf5.24.0-peft0.21.2-trl1.16.0"]
    assert found.stacks[0].sources["transformers"].kind == "git"
    assert found.stacks[0].transformers == "5.26.0.dev0"


def test_a_resolution_and_an_interpreter_are_of_every_stack(config: MatrixConfig) -> None:
    (stack,) = made(
        config, transformers="latest", peft="latest", trl="latest", resolution="era-30", python="3.12"
    ).stacks

    assert stack.resolution == "era-30"
    assert stack.as_of == (LONG_AGO + timedelta(days=30)).date()
    assert (stack.python, stack.pins) == ("3.12", {})


@pytest.mark.parametrize(
    ("resolution", "pins", "shown"),
    [
        ("pinned", {"torch": "2.13.0", "datasets": "5.2.0", "numpy": "2.1.0"}, "numpy=2.1.0"),
        ("fresh", {"torch": "2.13.0", "numpy": "2.1.0"}, "numpy=2.1.0+resolution=fresh+torch=2.13.0"),
    ],
)
def test_pins_of_a_selection_hold_for_its_stacks(
    config: MatrixConfig, resolution: str, pins: dict[str, str], shown: str
) -> None:
    own = {"torch": "2.13.0", "numpy": "2.1.0"}
    (stack,) = made(config, transformers="latest", peft="latest", trl="latest", resolution=resolution, pins=own).stacks

    assert stack.pins == pins
    assert Cell(family="alpha", recipe="lora", stack=stack).id.endswith(f"+{shown}")


def test_what_selects_nothing_is_an_error(config: MatrixConfig) -> None:
    with pytest.raises(ConfigurationError, match=r"selections\.found: peft: '<0\.10' selects no release"):
        made(config, peft="<0.10")
    with pytest.raises(ConfigurationError, match=r"selections\.found: Every combination .* is excluded"):
        made(config, transformers="latest", peft="latest", trl="latest", exclude=["transformers>1"])
    with pytest.raises(ConfigurationError, match=r"selections\.found: every stack is excluded"):
        made(config, transformers="latest", peft="latest", exclude=["trl>1"])


def test_a_block_that_names_no_selection_is_not_one_of_all_declared_stacks() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        Block.model_validate({"recipes": ["lora"], "selections": []})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "selects no version"),
        ({"peft": "latests"}, "did you mean 'latest'"),
        ({"peft": []}, "at least 1 item"),
        ({"peft": "latest", "strategy": "all"}, "'full', 'extremes' or 'pairwise'"),
        ({"peft": "latest", "include": ["peft"]}, "is not a condition"),
        ({"peft": "latest", "resolution": "old"}, "'old' is none"),
        ({"peft": "latest", "name": "New Ones"}, "pattern"),
        ({"peft": "latest", "torch": "latest"}, "Extra inputs"),
    ],
)
def test_what_is_no_selection_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        VersionSelection.model_validate({"name": "found", **fields})


SELECTIONS = """
[[selections]]
name = "new"
transformers = "latest-minors:2"
peft = "latest"
trl = "latest"

[[selections]]
name = "old"
transformers = "4.57.6"
peft = "0.20.0"
trl = "1.4.0"

[profiles.found]
description = "what is new, and what is declared"
cells = [
  { recipes = ["lora"], selections = ["*"], families = ["alpha"] },
  { recipes = ["lora*"], selections = ["new"], stacks = ["tf5.24*"], families = ["alpha"] },
  { recipes = ["lora"], stacks = ["tf5.5.0-*"], families = ["alpha"] },
]

[profiles.default]
"""


@pytest.fixture
def found(load: Load) -> MatrixConfig:
    return load("[profiles.default]", SELECTIONS)


def planned(config: MatrixConfig) -> Selection:
    needed = needed_selections(config, "found")
    generated = {it.name: generate_stacks(config, it, Answers(), now=NOW) for it in needed}
    return Selection(profile="found", generated=generated)


def test_a_profile_runs_the_stacks_that_were_found_before_the_declared(
    found: MatrixConfig, catalogue: Catalogue
) -> None:
    assert [cell.id for cell in plan_cells(found, catalogue, planned(found))] == [
        "alpha/lora@tf5.24.0-peft0.21.2-trl1.16.0",
        "alpha/lora-experts@tf5.24.0-peft0.21.2-trl1.16.0",
        "alpha/lora@tf5.23.0-peft0.21.2-trl1.16.0+python=3.12",
        "alpha/lora@tf4.57.6-peft0.20.0-trl1.4.0",
        "alpha/lora@tf5.5.0-peft0.19.1-trl0.25.1",
    ]


def test_why_a_cell_runs_is_its_blocks_and_selectors(found: MatrixConfig, catalogue: Catalogue) -> None:
    why = reasons(found, catalogue, planned(found))

    by = "selections.new: transformers latest-minors:2, peft latest, trl latest"
    assert why["alpha/lora@tf5.24.0-peft0.21.2-trl1.16.0"] == (
        f"profiles.found.cells.0 ({by})",
        f"profiles.found.cells.1 ({by})",
    )
    assert why["alpha/lora@tf5.5.0-peft0.19.1-trl0.25.1"] == ("profiles.found.cells.2",)


def test_stacks_of_the_same_versions_keep_their_own_reasons(load: Load, catalogue: Catalogue) -> None:
    again = SELECTIONS.replace('name = "old"\n', 'name = "old"\nresolution = "fresh"\n').replace("4.57.6", "5.24.0")
    config = load("[profiles.default]", again.replace("0.20.0", "0.21.2").replace("1.4.0", "1.16.0"))
    why = reasons(config, catalogue, planned(config))

    stack = "alpha/lora@tf5.24.0-peft0.21.2-trl1.16.0"
    (fresh,) = why[f"{stack}+resolution=fresh"]
    assert fresh == "profiles.found.cells.0 (selections.old: transformers 5.24.0, peft 0.21.2, trl 1.16.0, fresh)"
    assert all("selections.old" not in reason for reason in why[stack])


def test_only_what_a_profile_names_is_asked_for(found: MatrixConfig, catalogue: Catalogue) -> None:
    assert [it.name for it in needed_selections(found, "found")] == ["new", "old"]
    assert needed_selections(found, "default") == ()
    # without any index: what is declared, and what was not found is not in it
    assert "tf5.24.0" not in " ".join(cell.id for cell in all_cells(found, catalogue))
    with pytest.raises(NothingSelectedError):
        plan_cells(found, catalogue, Selection(select=("*@tf5.24*",)))
    with pytest.raises(ValueError, match="not been expanded: new, old"):
        plan_cells(found, catalogue, Selection(profile="found"))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('selections = ["new"]', 'selections = ["newest"]', "unknown selection 'newest'. Did you mean 'new'"),
        ('selections = ["new"]', 'selections = ["x*"]', "'x*' matches no selection"),
        ('name = "old"', 'name = "new"', "named more than once: new"),
        ('peft = "0.20.0"', 'peft = "0.20.x"', "selections.1.peft"),
    ],
)
def test_a_selection_that_cannot_be_is_found_when_the_file_is_read(load: Load, old: str, new: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load("[profiles.default]", SELECTIONS.replace(old, new, 1))

    assert words in caught.value.message
    assert old != new


def test_a_stack_glob_of_a_selection_that_matches_nothing_is_an_error(load: Load, catalogue: Catalogue) -> None:
    config = load(
        "[profiles.default]", SELECTIONS.replace('stacks = ["tf5.24*"]', 'stacks = ["tf5.5.0-peft0.19.1-trl0.25.1"]')
    )

    with pytest.raises(UnknownNameError, match=r"profiles\.found\.cells\.1\.stacks\.0"):
        plan_cells(config, catalogue, planned(config))
