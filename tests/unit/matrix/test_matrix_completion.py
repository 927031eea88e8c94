"""Which stack a partial choice of versions means; indexes and resolver are made up."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

import pytest

from harness.errors import ConfigurationError, UnknownNameError
from harness.matrix.cell import Cell
from harness.matrix.completion import complete_stack
from harness.matrix.config import MatrixConfig
from harness.matrix.sources import Source, SourceSelector

COMMIT = "1a2b3c4d" * 5


@dataclass
class Answers:
    """Says what it was made with, and remembers what the resolver was asked."""

    takes: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, datetime | None] = field(default_factory=dict)
    refuses: str | None = None
    resolved: list[list[str]] = field(default_factory=list)
    pre: list[list[str]] = field(default_factory=list)

    def __call__(self) -> Answers:
        """Be what opens itself."""
        return self

    def newest(self, package: str, *, pre: bool) -> str:
        """The newest release, as made up here."""
        return {"transformers": "5.24.0", "peft": "0.21.2", "trl": "1.16.0"}[package] + ("rc1" if pre else "")

    def oldest(self, package: str, *, pre: bool) -> str:
        """The oldest release, as made up here."""
        assert not pre
        return {"transformers": "4.52.1", "peft": "0.15.0", "trl": "0.18.0"}[package]

    def choose(self, requirements: Sequence[str], *, pre: Collection[str]) -> Mapping[str, str]:
        """What it was made with."""
        self.resolved.append(sorted(requirements))
        self.pre.append(sorted(pre))
        if self.refuses is not None and self.refuses in requirements:
            raise ConfigurationError(f"nothing goes with {self.refuses}")
        return self.takes

    def uploaded(self, versions: Mapping[str, str]) -> Mapping[str, datetime | None]:
        """What it was made with."""
        return {name: self.uploads.get(name) for name in versions}

    def build(self, package: str, selector: SourceSelector) -> tuple[str, Source]:
        """A commit."""
        return "5.25.0.dev0", Source(kind=selector.kind, digest=COMMIT, location=f"git+https://h/o/{package}@{COMMIT}")

    def today(self) -> date:
        """A day."""
        return date(2026, 11, 28)


def nothing_is_asked() -> Answers:
    raise AssertionError


@pytest.mark.parametrize(
    ("chosen", "stack_id"),
    [
        ({}, "tf5.5.0-peft0.19.1-trl0.25.1"),
        ({"peft": None}, "tf5.5.0-peft0.19.1-trl0.25.1"),
        ({"peft": "0.19.1"}, "tf5.5.0-peft0.19.1-trl0.25.1"),
        ({"transformers": "4.57.6"}, "tf4.57.6-peft0.19.1-trl0.25.1"),
        ({"trl": "1.16.0"}, "tf5.23.0-peft0.21.2-trl1.16.0"),
        ({"transformers": "5.5"}, "tf5.5.0-peft0.19.1-trl0.25.1"),
    ],
)
def test_the_first_declared_stack_that_fits_completes_a_choice(
    config: MatrixConfig, chosen: dict[str, str | None], stack_id: str
) -> None:
    completion = complete_stack(config, chosen, chooser=nothing_is_asked)

    assert completion.stack.id == stack_id
    assert completion.stack in config.declared
    assert stack_id in completion.sentence


def test_three_given_versions_need_no_completion(config: MatrixConfig) -> None:
    chosen = {"transformers": "5.1.0", "peft": "0.18.1", "trl": "1.0.0"}

    assert complete_stack(config, chosen, chooser=nothing_is_asked).stack.id == "tf5.1.0-peft0.18.1-trl1.0.0"


def test_pins_of_the_command_line_that_differ_show_in_ids(config: MatrixConfig) -> None:
    pins = {"torch": "2.12.0", "datasets": "5.2.0", "numpy": "2.1.0"}
    completion = complete_stack(config, {}, chooser=nothing_is_asked, pins=pins, python="3.13")

    assert completion.stack.extra_pins == ("numpy", "torch")
    assert completion.stack.pins == pins
    assert completion.stack.python == "3.13"


def test_a_declared_interpreter_is_kept_unless_another_is_asked_for(config: MatrixConfig) -> None:
    chosen = {"trl": "1.16.0"}

    assert complete_stack(config, chosen, chooser=nothing_is_asked).stack.python == "3.12"
    assert complete_stack(config, chosen, chooser=nothing_is_asked, python="3.13").stack.python == "3.13"


def test_a_malformed_version_names_its_option(config: MatrixConfig) -> None:
    with pytest.raises(ConfigurationError, match=r"--peft: '0\.19\.x' is not a version .*'0\.19'"):
        complete_stack(config, {"peft": "0.19.x"}, chooser=nothing_is_asked)


@pytest.mark.parametrize(
    ("package", "text"),
    [
        ("transformers", "4.40.0"),
        ("transformers", "<4.52"),
        ("transformers", ">=4.30,<=4.51.3"),
        ("transformers", "==4.40.*"),
        ("transformers", "~=4.40.1"),
        ("transformers", "latest<4.40"),
        ("peft", "0.14.0"),
        ("trl", "0.17.0"),
    ],
)
def test_what_is_too_old_is_refused_before_anything_is_asked(config: MatrixConfig, package: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match="is too old for the harness, which works with") as caught:
        complete_stack(config, {package: text}, chooser=nothing_is_asked)

    assert caught.value.message.startswith(f"{package} ")
    assert f"--{package} oldest" in str(caught.value.remedy)


@pytest.mark.parametrize("text", [">=4.40", "~=4.40", "!=4.40.0", "<4.53", "<=4.52.0", "==4.*", "==5.5.*"])
def test_a_range_that_has_releases_that_are_new_enough_is_asked_for(config: MatrixConfig, text: str) -> None:
    answers = Answers(takes={"transformers": "4.57.6", "peft": "0.19.1", "trl": "0.25.1"})

    complete_stack(config, {"transformers": text}, chooser=answers)

    assert f"transformers{text}" in answers.resolved[0]


def test_only_the_three_packages_make_a_stack(config: MatrixConfig) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'transformers'"):
        complete_stack(config, {"transformer": "5.5.0"}, chooser=nothing_is_asked)


def test_the_resolver_completes_what_no_stack_has(config: MatrixConfig) -> None:
    answers = Answers(takes={"transformers": "5.30.0", "trl": "2.0.0", "torch": "2.13.0+cpu"})
    completion = complete_stack(config, {"peft": "0.20.0"}, chooser=answers)

    assert completion.stack.id == "tf5.30.0-peft0.20.0-trl2.0.0"
    assert completion.sentence == "transformers 5.30.0 and trl 2.0.0 are what the resolver takes beside peft 0.20.0."
    # datasets is what an override moves, so it is not asked for before transformers is known
    assert answers.resolved[0] == ["peft==0.20.0", "torch==2.13.0", "transformers>=4.52", "trl>=0.18"]


def test_what_is_proposed_goes_with_the_pins_that_it_brings(config: MatrixConfig) -> None:
    chosen = {"transformers": "4.57.6", "peft": "0.21.2"}
    completion = complete_stack(config, chosen, chooser=Answers(takes={"trl": "1.16.0"}))

    assert completion.stack.id == "tf4.57.6-peft0.21.2-trl1.16.0"
    assert completion.stack.pins["datasets"] == "5.0.1"
    assert completion.sentence.startswith("trl 1.16.0 is what the resolver takes")
    with pytest.raises(ConfigurationError, match=r"nothing goes with datasets==5\.0\.1"):
        complete_stack(config, chosen, chooser=Answers(takes={"trl": "1.16.0"}, refuses="datasets==5.0.1"))


def test_latest_and_a_range_are_what_indexes_and_resolver_say(config: MatrixConfig) -> None:
    answers = Answers(takes={"peft": "0.21.1"})
    given = {"transformers": "latest", "peft": ">=0.19,<0.21.2", "trl": "latest"}
    completion = complete_stack(config, given, chooser=answers, pins={"numpy": "2.1.0"})

    assert completion.stack.id == "tf5.24.0-peft0.21.1-trl1.16.0"
    assert completion.stack.extra_pins == ("numpy",)
    assert completion.sentence == (
        "transformers 5.24.0 is the newest release. trl 1.16.0 is the newest release. "
        "peft 0.21.1 is what the resolver takes beside transformers 5.24.0 and trl 1.16.0."
    )
    asked = ["numpy==2.1.0", "peft<0.21.2,>=0.19", "torch==2.13.0", "transformers==5.24.0", "trl==1.16.0"]
    assert answers.resolved[0] == asked


def test_pre_releases_are_asked_for(config: MatrixConfig) -> None:
    given = dict.fromkeys(("transformers", "peft", "trl"), "latest")

    assert (
        complete_stack(config, given, chooser=Answers(), pre=True).stack.id == "tf5.24.0rc1-peft0.21.2rc1-trl1.16.0rc1"
    )


def test_pre_releases_of_the_three_alone_are_left_to_the_resolver(config: MatrixConfig) -> None:
    answers = Answers(takes={"peft": "0.22.0rc1", "trl": "1.17.0rc1"})
    completion = complete_stack(config, {"transformers": "5.24.0", "peft": ">=0.21"}, chooser=answers, pre=True)

    assert completion.stack.id == "tf5.24.0-peft0.22.0rc1-trl1.17.0rc1"
    assert answers.resolved[0] == ["peft>=0.21", "torch==2.13.0", "transformers==5.24.0", "trl>=0.18"]
    assert answers.pre[0] == ["peft", "transformers", "trl"]
    for text, counting in ((">=0.21rc1", ["peft"]), (">=0.21", [])):
        answers = Answers(takes={"peft": "0.22.0rc1", "trl": "1.16.0"})
        complete_stack(config, {"transformers": "5.24.0", "peft": text}, chooser=answers)
        assert answers.pre[0] == counting, "a range may name one"


def test_the_oldest_are_those_that_the_harness_supports(config: MatrixConfig) -> None:
    given = dict.fromkeys(("transformers", "peft", "trl"), "oldest")
    answers = Answers()

    assert complete_stack(config, given, chooser=answers).stack.id == "tf4.52.1-peft0.15.0-trl0.18.0"
    assert answers.resolved == []


def test_a_range_alone_is_no_declared_stack(config: MatrixConfig) -> None:
    answers = Answers(takes={"transformers": "5.24.0", "peft": "0.21.2", "trl": "1.16.0"})

    assert complete_stack(config, {"peft": ">=0.19"}, chooser=answers).stack.id == "tf5.24.0-peft0.21.2-trl1.16.0"


def test_the_latest_within_a_range_is_what_goes_with_the_rest(config: MatrixConfig) -> None:
    answers = Answers(takes={"peft": "0.20.0"})
    given = {"transformers": "5.19.0", "peft": "latest<0.21", "trl": "latest"}

    assert complete_stack(config, given, chooser=answers).stack.id == "tf5.19.0-peft0.20.0-trl1.16.0"
    assert "peft<0.21" in answers.resolved[0]


def test_one_cell_cannot_run_on_several_releases(config: MatrixConfig) -> None:
    for text in ("latest-minors:3", "latest-patches"):
        with pytest.raises(ConfigurationError, match="--peft selects several releases") as caught:
            complete_stack(config, {"peft": text}, chooser=Answers())
        assert "[[selections]]" in (caught.value.remedy or "")


def test_a_source_shows_in_the_id_and_its_place_nowhere(config: MatrixConfig) -> None:
    answers = Answers(takes={"peft": "0.21.2", "trl": "1.16.0"})
    stack = complete_stack(config, {"transformers": "git+https://h/o/transformers@main"}, chooser=answers).stack
    cell = Cell(family="alpha", recipe="lora", stack=stack)

    assert stack.id == "tf5.25.0.dev0.git.1a2b3c4d-peft0.21.2-trl1.16.0"
    assert stack.shown("transformers") == "5.25.0.dev0.git.1a2b3c4d"
    assert f"transformers @ git+https://h/o/transformers@{COMMIT}" in stack.requirements
    assert f"transformers @ git+https://h/o/transformers@{COMMIT}" in answers.resolved[0]
    assert stack.marks == (f"transformers git {COMMIT}",)
    assert "https" not in cell.model_dump_json()
    assert Cell.model_validate_json(cell.model_dump_json()).id == cell.id
    assert f"--transformers git+URL@{COMMIT} --peft 0.21.2" in cell.reproduce


def test_fresh_pins_the_three_alone(config: MatrixConfig) -> None:
    completion = complete_stack(config, {}, chooser=Answers(), resolution="fresh", pins={"torch": "2.12.0"})
    cell = Cell(family="alpha", recipe="lora", stack=completion.stack)

    assert completion.stack.requirements == (
        "datasets",
        "peft==0.19.1",
        "torch==2.12.0",
        "transformers==5.5.0",
        "trl==0.25.1",
    )
    assert completion.stack.as_of == date(2026, 11, 28)
    assert completion.stack.marks == ("fresh 2026-11-28",)
    assert completion.sentence.endswith("Everything else is what an installation gives today.")
    assert cell.id == "alpha/lora@tf5.5.0-peft0.19.1-trl0.25.1+resolution=fresh+torch=2.12.0"
    assert "--resolution fresh" in cell.reproduce


def test_a_pin_of_the_command_line_holds_in_every_resolution(config: MatrixConfig) -> None:
    """Though it may be the configuration's own choice."""
    stack = complete_stack(config, {}, chooser=Answers(), resolution="fresh", pins={"torch": "2.13.0"}).stack

    assert "torch==2.13.0" in stack.requirements
    assert (stack.pins, stack.extra_pins, stack.unpinned) == ({"torch": "2.13.0"}, ("torch",), ("datasets",))
    assert "--pin torch==2.13.0 --resolution fresh" in Cell(family="alpha", recipe="lora", stack=stack).reproduce


def test_an_era_ends_some_days_after_the_newest_of_the_three(config: MatrixConfig) -> None:
    uploads = {
        "transformers": datetime(2026, 4, 2, 9, tzinfo=UTC),
        "peft": datetime(2026, 4, 16, 23, 30, tzinfo=UTC),
        "trl": datetime(2025, 11, 12, tzinfo=UTC),
    }
    completion = complete_stack(config, {}, chooser=Answers(uploads=uploads), resolution="era-30")

    assert completion.stack.as_of == date(2026, 5, 16)
    assert completion.stack.marks == ("era-30 2026-05-16",)
    assert completion.stack.pins == {}
    assert completion.sentence.endswith("Nothing is newer than 2026-05-16, 30 days after the newest of the three.")
    with pytest.raises(ConfigurationError, match="No index says when trl was uploaded"):
        complete_stack(config, {}, chooser=Answers(uploads=uploads | {"trl": None}), resolution="era")
