"""Conditions, pins, and which stack a partial choice of versions means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigurationError, UnknownNameError
from harness.matrix.cell import Stack, canonical_version
from harness.matrix.conditions import parse_condition
from harness.matrix.config import MatrixConfig
from harness.matrix.versions import complete_stack, parse_pin, require_versions


def stack(transformers: str = "5.5.0", peft: str = "0.19.1", **pins: str) -> Stack:
    return Stack(transformers=transformers, peft=peft, trl="1.4.0", pins=pins)


@pytest.mark.parametrize(
    ("text", "holds_for", "not_for"),
    [
        ("peft==0.19.1", stack(peft="0.19.1"), stack(peft="0.19.0")),
        ("transformers>=5.6.2, peft==0.19.1", stack("5.23.0", "0.19.1"), stack("5.5.0", "0.19.1")),
        ("transformers>=5.6.2, peft==0.19.1", stack("5.6.2", "0.19.1"), stack("5.6.2", "0.20.0")),
        ("transformers>=5,<5.6, peft<0.19", stack("5.5.0", "0.18.1"), stack("5.6.0", "0.18.1")),
        ("transformers>=5,peft<0.19,transformers<5.6", stack("5.5.0", "0.18.1"), stack("5.7.0", "0.18.1")),
        ("peft~=0.19.0", stack(peft="0.19.9"), stack(peft="0.20.0")),
        ("torch==2.13.0", stack(torch="2.13.0+cpu"), stack(torch="2.13.1")),
        ("peft>=0.19", stack(peft="0.20.0rc1"), stack(peft="0.18.1")),
        ("huggingface_hub<1", stack(**{"huggingface-hub": "0.36.0"}), stack()),
    ],
)
def test_a_condition_holds_where_every_package_is_in_its_range(text: str, holds_for: Stack, not_for: Stack) -> None:
    condition = parse_condition(text)

    assert condition.holds(holds_for)
    assert not condition.holds(not_for)


@pytest.mark.parametrize(
    "text", ["", "peft", ">=5", "peft 0.19", "peft==0.19.1,", "peft>=zero", "peft=>0.19", "==1, peft==1", "peft===1"]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        parse_condition(text)


@given(
    version=st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30)),
    bound=st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30)),
)
def test_ranges_order_versions_as_numbers(version: tuple[int, int, int], bound: tuple[int, int, int]) -> None:
    text = ".".join(map(str, bound))
    here = stack(".".join(map(str, version)))

    assert parse_condition(f"transformers>={text}").holds(here) == (version >= bound)
    assert parse_condition(f"transformers<{text}").holds(here) == (version < bound)


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("0.21.x", "'0.21'"),
        ("5,5,0", "'5.5.0'"),
        (">=5.5.0", "'5.5.0'"),
        ("5.5.O", "'5.5'"),
        ("newest", "such as '5.5.0'"),
    ],
)
def test_a_malformed_version_suggests_the_nearest_well_formed_one(text: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match="is not a version") as caught:
        canonical_version(text)

    assert suggestion in str(caught.value)


def test_a_pin_is_an_exact_version() -> None:
    assert parse_pin("torch==2.12.0") == ("torch", "2.12.0")
    assert parse_pin("Huggingface_Hub == 1.0") == ("huggingface-hub", "1.0")


@pytest.mark.parametrize("text", ["torch", "torch>=2", "==2.13.0", "torch==", "torch==two", "torch==2.*"])
def test_what_is_no_pin_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_pin(text)


def test_the_three_packages_are_not_pinned_but_chosen() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_pin("peft==0.19.1")

    assert caught.value.remedy == "Use --peft 0.19.1."


def nothing_is_looked_up(package: str) -> str:
    raise AssertionError(package)


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
    completion = complete_stack(config, chosen, newest=nothing_is_looked_up)

    assert completion.stack.id == stack_id
    assert completion.stack in config.declared
    assert stack_id in completion.sentence


def test_the_newest_releases_complete_what_no_stack_has(config: MatrixConfig) -> None:
    newest = {"transformers": "5.30.0", "trl": "2.0.0"}
    completion = complete_stack(config, {"peft": "0.20.0"}, newest=newest.__getitem__)

    assert completion.stack.id == "tf5.30.0-peft0.20.0-trl2.0.0"
    assert completion.sentence == (
        "No declared stack has peft 0.20.0: transformers 5.30.0 and trl 2.0.0 are the newest releases."
    )


def test_two_given_versions_are_looked_for_together(config: MatrixConfig) -> None:
    chosen = {"transformers": "4.57.6", "peft": "0.21.2"}
    completion = complete_stack(config, chosen, newest={"trl": "2.0.0"}.__getitem__)

    assert completion.stack.id == "tf4.57.6-peft0.21.2-trl2.0.0"
    assert completion.stack.pins["datasets"] == "5.0.1"
    assert completion.sentence.endswith("trl 2.0.0 is the newest release.")


def test_three_given_versions_need_no_completion(config: MatrixConfig) -> None:
    chosen = {"transformers": "5.1.0", "peft": "0.18.1", "trl": "1.0.0"}

    assert complete_stack(config, chosen, newest=nothing_is_looked_up).stack.id == "tf5.1.0-peft0.18.1-trl1.0.0"


def test_pins_of_the_command_line_that_differ_show_in_ids(config: MatrixConfig) -> None:
    pins = {"torch": "2.12.0", "datasets": "5.2.0", "numpy": "2.1.0"}
    completion = complete_stack(config, {}, newest=nothing_is_looked_up, pins=pins, python="3.13")

    assert completion.stack.extra_pins == ("numpy", "torch")
    assert completion.stack.pins == pins
    assert completion.stack.python == "3.13"


def test_a_declared_interpreter_is_kept_unless_another_is_asked_for(config: MatrixConfig) -> None:
    chosen = {"trl": "1.16.0"}

    assert complete_stack(config, chosen, newest=nothing_is_looked_up).stack.python == "3.12"
    assert complete_stack(config, chosen, newest=nothing_is_looked_up, python="3.13").stack.python == "3.13"


def test_a_malformed_version_names_its_option(config: MatrixConfig) -> None:
    with pytest.raises(ConfigurationError, match=r"--peft: '0\.19\.x' is not a version .*'0\.19'"):
        complete_stack(config, {"peft": "0.19.x"}, newest=nothing_is_looked_up)


def test_only_the_three_packages_make_a_stack(config: MatrixConfig) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'transformers'"):
        complete_stack(config, {"transformer": "5.5.0"}, newest=nothing_is_looked_up)


def test_an_interpreter_is_taken_that_holds_what_was_asked_for() -> None:
    held = stack("5.5.0", "0.19.1")

    require_versions(held, {"transformers": "5.5", "peft": None})
    with pytest.raises(
        ConfigurationError, match=r"--peft 0\.18\.1: the interpreter given by --python has peft 0\.19\.1"
    ):
        require_versions(held, {"transformers": "5.5.0", "peft": "0.18.1"})
    with pytest.raises(ConfigurationError, match="--trl: "):
        require_versions(held, {"trl": "the newest"})
