"""What a stack may pin: nothing that a shell, an id or a file's name takes for something else."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from harness.contract.cell_fields import MEANINGS
from harness.contract.supported import OLDEST
from harness.errors import ConfigurationError
from harness.matrix.cell import Stack
from harness.matrix.too_old import refuse_too_old
from harness.matrix.versions import parse_pin

VERSIONS = {"transformers": "5.5.0", "peft": "0.19.1", "trl": "0.25.1"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pins": {"x; rm -rf ~ #": "1"}}, "no package's name"),
        ({"pins": {"../../../x": "1"}}, "no package's name"),
        ({"pins": {"Torch_Vision": "1"}}, "write the package's name as 'torch-vision'"),
        ({"pins": {"": "1"}}, "no package's name"),
        ({"pins": {"peft": "1"}}, "key of the stack itself"),
        ({"pins": {"torch": "1!2.0"}}, "epoch"),
        ({"transformers": "1!5.5.0"}, "epoch"),
        ({"pins": {"torch": "1" * 5000}}, "a version of 5000 characters"),
        ({"extra_pins": ["torch"]}, "extra_pins without a version: torch"),
        ({"pins": {"torch": "2.13.0"}, "extra_pins": ["torch", "numpy"]}, "extra_pins without a version: numpy"),
        ({"python": "3.\N{ARABIC-INDIC DIGIT ONE}"}, "pattern"),
        ({"python": "3.12\n"}, "pattern"),
    ],
)
def test_what_is_no_stack_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Stack.model_validate(VERSIONS | changes)


@pytest.mark.parametrize("name", [*(name.replace("_", "-") for name in MEANINGS), "python", "unmanaged"])
def test_no_package_hides_what_an_id_says_of_a_cell(name: str) -> None:
    with pytest.raises(ValidationError, match="is what a cell's id calls something else"):
        Stack.model_validate(VERSIONS | {"pins": {name: "1"}, "extra_pins": [name]})
    with pytest.raises(ConfigurationError, match=f"--pin {name}==1: .*calls something else"):
        parse_pin(f"{name}==1")


def test_an_extra_pin_is_shown() -> None:
    stack = Stack.model_validate(VERSIONS | {"pins": {"torch": "2.12.0+cpu"}, "extra_pins": ["torch"]})

    assert stack.requirements[-2:] == ("transformers==5.5.0", "trl==0.25.1")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transformers": "4.51.3"}, "transformers 4.51.3 is too old for the harness, which works"),
        ({"peft": "0.14.0"}, "peft 0.14.0 is too old for the harness, which works with peft 0.15"),
        ({"trl": "0.17.0"}, "trl 0.17.0 is too old for the harness, which works with trl 0.18"),
        ({"trl": "0.18.0rc1"}, "trl 0.18.0rc1 is too old for the harness"),
    ],
)
def test_what_is_older_than_the_harness_knows_is_refused_in_those_words(changes: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as refused:
        refuse_too_old([Stack.model_validate(VERSIONS), Stack.model_validate(VERSIONS | changes)])

    assert refused.value.exit_code == 2


def test_the_oldest_that_the_harness_knows_are_not_too_old() -> None:
    refuse_too_old([Stack.model_validate({name: f"{version}.0" for name, version in OLDEST.items()})])
