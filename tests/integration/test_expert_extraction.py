"""LoRA extraction against PEFT's own delta in every PEFT of the stacks, for any number of experts, shape and rank."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from real_stacks import NEWEST, STANDARD, SWAPPED, ask, made_once

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PROGRAM = Path(__file__).with_name("extraction_cells.py")
SWAPPING = {SWAPPED: "swapped", STANDARD: "standard", NEWEST: "standard"}


def cases() -> list[dict[str, Any]]:
    """Two hundred drawn at random from a seed, and the corners: one expert, square, rank 1."""
    draw = random.Random(4)  # noqa: S311 - test cases
    drawn = [
        {
            "experts": draw.choice([1, 2, 3, 8]),
            "in": draw.choice([4, 6, 7, 8]),
            "out": draw.choice([4, 6, 7, 8]),
            "rank": draw.choice([1, 2, 3, 5]),
            "alpha": draw.choice([1, 3, 16]),
            "rslora": draw.random() < 0.5,
            "transposed": draw.random() < 0.5,
        }
        for _ in range(200)
    ]
    return [{**case, "seed": seed} for seed, case in enumerate(drawn)]


REFUSED = {
    "another module": "is no PEFT ParamWrapper",
    "no such adapter": "has no adapter 'other'",
    "bias": "has a bias",
    "dropout": "has dropout",
    "merged": "is merged into",
    "rank": "are not those of 3 experts of rank 3",
    "variant": "is a variant",
    "inactive": "0 adapters are active",
}
PLAIN = {"experts": 3, "in": 6, "out": 8, "rank": 2, "alpha": 3, "rslora": False, "transposed": False, "seed": 1}

Pairs = list[tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture(scope="module", params=SWAPPING)
def answered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Pairs]:
    """A stack, and what was said there of every case, in one process."""
    given = [*cases(), *({**PLAIN, "spoil": how} for how in REFUSED)]
    name = f"extraction-{request.param}"
    found = made_once(tmp_path_factory, name, lambda: ask(request.param, PROGRAM, given, tmp_path_factory.mktemp(name)))
    return request.param, list(zip(given, found, strict=True))


def test_the_factors_give_what_pefts_own_delta_gives(answered: tuple[str, Pairs]) -> None:
    stack_id, pairs = answered
    drawn = [(case, said) for case, said in pairs if "spoil" not in case]
    for case, said in drawn:
        if "refused" in said:
            # With one expert PEFT multiplies the factors as they lie, whichever way round the parameter is: no delta.
            assert case["experts"] == 1, (case, said)
            assert not said["peft_can"], (case, said)
            continue
        assert said["shapes"] == [
            [case["experts"], case["in"], case["rank"]],
            [case["experts"], case["rank"], case["out"]],
        ], case
        assert said["error"] < 1e-12, (case, said)
        assert said["gradients"], case
    layouts = {
        transposed: {
            said["io_layout"] for case, said in drawn if case["experts"] > 1 and case["transposed"] is transposed
        }
        for transposed in (False, True)
    }
    assert layouts == {False: {SWAPPING[stack_id]}, True: {"standard"}}


def test_what_is_not_understood_is_refused_by_name(answered: tuple[str, Pairs]) -> None:
    refused = {case["spoil"]: said["refused"] for case, said in answered[1] if "spoil" in case}

    assert refused.keys() == REFUSED.keys()
    for how, words in REFUSED.items():
        assert words in refused[how]
