"""Conditions and pins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigurationError
from harness.matrix.cell import Stack, canonical_version
from harness.matrix.conditions import parse_condition
from harness.matrix.versions import parse_pin, parse_resolution, require_versions


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


def test_an_interpreter_is_taken_that_holds_what_was_asked_for() -> None:
    held = stack("5.5.0", "0.19.1")

    require_versions(held, {"transformers": "5.5", "peft": None})
    require_versions(held, {"transformers": ">=5,<6", "peft": "==0.19.*"})
    with pytest.raises(
        ConfigurationError, match=r"--peft 0\.18\.1: the interpreter given by --python has peft 0\.19\.1"
    ):
        require_versions(held, {"transformers": "5.5.0", "peft": "0.18.1"})
    with pytest.raises(ConfigurationError, match="--trl: "):
        require_versions(held, {"trl": "the newest"})
    for text in (">=6", "latest", "./transformers"):
        with pytest.raises(ConfigurationError, match=r"given by --python has transformers 5\.5\.0"):
            require_versions(held, {"transformers": text})


@pytest.mark.parametrize(
    ("text", "means"),
    [("pinned", "pinned"), ("fresh", "fresh"), ("era", "era-14"), ("era-30", "era-30"), ("era-0", "era-0")],
)
def test_a_resolution_is_read(text: str, means: str) -> None:
    assert parse_resolution(text) == means


@pytest.mark.parametrize("text", ["", "era-", "era-x", "era-99999", "newest", "era30"])
def test_what_is_no_resolution_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--resolution"):
        parse_resolution(text)
