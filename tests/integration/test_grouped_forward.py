"""The grouped forward on real models under the real PEFT: fused experts, and lists of Linears on transformers 4.57.

The oracle is PEFT's own forward on a twin of the model. In float64 both compute the same up to the order of sums, a few
1e-15 of the largest value. A band of 1e-10 leaves no room for a dropped, swapped or misscaled factor. (The families'
norms round to float32 in between, so logits mostly agree to the bit.) The grouped_mm kernels take no float64: there
float32 is held to 1e-4 over three steps, and 6e-6 was measured at most.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from real_stacks import LINEARS, NEWEST, STANDARD, SWAPPED, ask, made_once

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PROGRAM = Path(__file__).with_name("grouped_cells.py")
EXACT, SINGLE = 1e-10, 1e-4
FAMILIES = ("qwen3_moe", "glm4_moe", "deepseek_v3", "qwen3_5_moe")
STACKS = (SWAPPED, STANDARD, NEWEST, LINEARS)

STEPS: list[dict[str, Any]] = [
    *({"family": family} for family in FAMILIES),
    {"family": "qwen3_moe", "dtype": "float32"},
    {"family": "qwen3_moe", "dtype": "float32", "rank": 3},
    {"family": "qwen3_5_moe", "dtype": "float32"},
    {"geometry": "square-gate-up"},
    {"geometry": "square-down"},
    {"roles": ["gate_up_proj"]},
    {"roles": ["down_proj"]},
    *({"reentrant": reentrant} for reentrant in (False, True)),
]
# 4.57 itself adds float64 to float32 in glm4_moe and deepseek_v3, which torch refuses; and it has no qwen3_5_moe.
STEPS_OF_LINEARS: list[dict[str, Any]] = [
    {"family": "qwen3_moe"},
    *({"family": family, "dtype": "float32"} for family in FAMILIES[:3]),
    {"roles": ["gate_up_proj"]},
    {"roles": ["down_proj"]},
    {"geometry": "single"},
    *({"reentrant": reentrant} for reentrant in (False, True)),
]
OTHERS: list[dict[str, Any]] = [
    *(
        {"scenario": name}
        for name in ("life", "again", "replicated", "callables", "copied", "hooked", "wrapped", "mixed", "refused")
    ),
    {"scenario": "compiled", "backend": "aot_eager"},
    {"scenario": "quantised", "geometry": "blocks", "dtype": "float32"},
]
OF_FUSED: list[dict[str, Any]] = [
    {"scenario": "saved", "dtype": "float32"},
    {"scenario": "packed"},
    {"scenario": "halves"},
    {"scenario": "single", "geometry": "single"},
]


class Answers:
    """What was said in one stack: of training steps, and of each scenario."""

    def __init__(self, stack_id: str, factory: pytest.TempPathFactory) -> None:
        self.stack_id = stack_id
        self.linears = stack_id == LINEARS
        steps = STEPS_OF_LINEARS if self.linears else STEPS
        others = [*OTHERS, *([] if self.linears else OF_FUSED)]
        given = [*({**case, "scenario": "steps"} for case in steps), *others]
        name = f"grouped-{stack_id}"
        found = made_once(factory, name, lambda: ask(stack_id, PROGRAM, given, factory.mktemp(name)))
        self.steps = list(zip(steps, found, strict=False))
        self.of = {case["scenario"]: said for case, said in zip(given, found, strict=True)}


@pytest.fixture(scope="module", params=STACKS)
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers(request.param, tmp_path_factory)


def test_logits_and_gradients_are_those_of_pefts_own_forward(said: Answers) -> None:
    for case, found in said.steps:
        tolerance = SINGLE if case.get("dtype") == "float32" else EXACT
        assert found["logits"] < tolerance, case
        assert found["gradients"] < tolerance, case
        assert found["same_tensors"], case
        assert found["moved"] > 0.01, case
        forwards = 6 if "reentrant" in case else 3  # gradient checkpointing runs each forward once more
        assert found["calls"] == [forwards * found["blocks"], 0], case


def test_the_report_says_which_products_are_grouped(said: Answers) -> None:
    ways = {(case.get("dtype", "float64"), case.get("rank", 4)): found["reasons"] for case, found in said.steps[:6]}

    base = "base Linears in a loop; " if said.linears else "gate_up_proj grouped_mm, "
    assert ways["float32", 4].startswith(f"{base}LoRA ")
    assert "LoRA loop" not in ways["float32", 4]
    assert "grouped_mm" not in ways["float64", 4]
    if not said.linears:  # rows of 12 bytes are not a multiple of 16
        assert ways["float32", 3] == "gate_up_proj grouped_mm, LoRA loop; down_proj grouped_mm, LoRA loop"


GROUPED, LIBRARY = [2, 0], [0, 2]
LIFE = {
    "enabled": LIBRARY,
    "attached": GROUPED,
    "changed": GROUPED,
    "elsewhere added": GROUPED,
    "elsewhere": LIBRARY,
    "back": GROUPED,
    "added": GROUPED,
    "filled": GROUPED,
    "switched": GROUPED,
    "two": LIBRARY,
    "one": GROUPED,
    "other merged": LIBRARY,
    "other unmerged": GROUPED,
    "deleted": GROUPED,
    "disabled": LIBRARY,
    "able": GROUPED,
    "merged": LIBRARY,
    "unmerged": GROUPED,
    "refilled": GROUPED,
    "reloaded": GROUPED,
    "unloaded": LIBRARY,
    "over": [0, 0],
}
SEVERAL_ON_EXPERTS = {"added", "filled", "switched", "two", "one", "other merged", "other unmerged", "deleted"}
MOVES = {
    "attached",
    "changed",
    "elsewhere",
    "back",
    "filled",
    "switched",
    "two",
    "one",
    "other merged",
    "other unmerged",
}
MOVES |= {"disabled", "able", "refilled"}


def test_whatever_peft_does_to_the_model_is_seen_at_the_next_call(said: Answers) -> None:
    *events, traces = said.of["life"]
    seen = {event: ran for event, _, _, ran, _, _ in events}
    allowed = LIFE if said.stack_id in {NEWEST, LINEARS} else LIFE.keys() - SEVERAL_ON_EXPERTS

    assert seen == {event: LIFE[event] for event in allowed}
    assert max(apart for _, apart, *_ in events) < EXACT
    assert {event for event, _, moved, *_ in events[1:] if moved > 0.01} == MOVES & seen.keys()
    for event, _, _, ran, states, _ in events:
        assert states == ["grouped" if ran == GROUPED else "library"], event
    words = {event: reason for event, *_, reason in events}
    assert words["enabled"] == words["elsewhere"] == words["unloaded"] == "no LoRA is active"
    assert words["disabled"] == "adapters are disabled"
    assert "is merged into" in words["merged"]
    assert words["over"] == "disabled"
    assert traces == []


def test_an_adapter_loaded_onto_an_enabled_base_is_not_hidden(said: Answers) -> None:
    found = said.of["again"]

    assert found["past"] < EXACT
    assert found["logits"] < EXACT
    assert found["calls"] == GROUPED
    assert found["traces"] == []
    assert found["states"] == ["library"]
    assert found["early"] == ["grouped"]  # as of now, before anything has run


def test_layers_that_peft_copies_are_run_and_given_back(said: Answers) -> None:
    found = said.of["replicated"]

    assert found["layers"] == 2
    assert found["logits"] < EXACT
    assert found["again"] < EXACT
    assert found["states"] == ["grouped"]
    assert found["traces"] == []


def test_disabling_gives_back_the_same_callables(said: Answers) -> None:
    found = said.of["callables"]

    assert found["during"] > 0
    assert found["same"]
    assert found["after"] == []
    assert "is enabled already" in found["twice"]


def test_a_copied_model_runs_its_own_experts(said: Answers) -> None:
    found = said.of["copied"]

    assert found["twin"] < EXACT
    assert found["original"] < EXACT
    assert found["ran"]
    assert found["traces"] == []
    assert found["left"] > 0


def test_a_compiled_model_sees_adapters_change(said: Answers) -> None:
    first, changed, disabled, elsewhere, back, calls, over = said.of["compiled"]
    looks = (first, changed, disabled, elsewhere, back, over)

    assert max(apart for apart, _ in looks) < EXACT
    assert [states for _, states in looks] == [["grouped"]] * 2 + [["library"]] * 2 + [["grouped"], ["library"]]
    assert calls == [6, 4]


def test_a_hook_on_an_inner_module_is_called(said: Answers) -> None:
    found = said.of["hooked"]

    assert found["seen"] == found["hooks"] == 2
    assert found["calls"] == LIBRARY
    assert "has hooks" in found["reasons"]
    assert found["then"] == ["grouped"]


def test_a_forward_that_somebody_else_put_on_an_instance_is_left_alone(said: Answers) -> None:
    found = said.of["wrapped"]

    apart, states, reason = found["before"]
    assert apart < EXACT
    assert states == ["refused"]
    assert "of its own" in reason
    assert found["after"][0] < EXACT
    assert found["after"][1] == GROUPED
    assert found["over"] == [0.0, [2, 2]]  # what is left of ours behind their wrapper runs the original


def test_a_batch_of_several_adapters_gets_pefts_own_answer(said: Answers) -> None:
    plain, ours = said.of["mixed"]

    assert ours == plain


def test_unknown_experts_are_refused_by_name(said: Answers) -> None:
    found = said.of["refused"]
    gpt_oss = "the forward of GptOssExperts is not one" if said.linears else "GptOssExperts says has_bias = True"

    ((state, reason),) = found["gpt_oss"]
    assert state == "refused"
    assert reason.startswith(gpt_oss)
    assert found["gpt_oss after"] == found["olmoe after"] == []
    assert found["linear"] == "Linear has no experts"
    if said.linears:
        assert found["olmoe"] == [["refused", "it is not known how OlmoeSparseMoeBlock routes to its list of experts"]]


def test_no_stack_of_matrices_but_the_models_own_is_kept_for_backward(said: Answers) -> None:
    if said.linears:
        pytest.skip("nothing is multiplied out there")
    found = said.of["saved"]

    assert found["plain"] >= found["weight"]  # what PEFT keeps: W + delta
    assert found["ours"] == 0


def test_packed_experts_are_unpacked_in_runs_and_again_in_backward(said: Answers) -> None:
    if said.linears:
        pytest.skip("bitsandbytes does it there")
    found = said.of["packed"]

    assert found["gradients"] < EXACT
    once = [3, 3, 2]
    assert found["forward"] == [once] * 4
    # nothing below the first block is trained: no gradient goes through its gate_up
    assert found["both"] == [once, *[once * 2] * 3]
    assert not found["kept"]
    assert found["calls"] == GROUPED
    assert found["reasons"].startswith("gate_up_proj loop over runs of packed experts")


def test_in_half_precision_errors_stay_those_of_half_precision(said: Answers) -> None:
    """bf16 throughout, float32 LoRA on bf16, autocast over float32: the error against float64 beside plain PEFT's.

    Dropping one of the two LoRAs is 0.66 off.
    """
    if said.linears:
        pytest.skip("each product is as PEFT's own there")

    for plain, ours, ran in said.of["halves"]:
        assert ran == 1
        assert ours < 3 * plain
        assert ours < 0.03


def test_one_expert_is_as_in_peft(said: Answers) -> None:
    if said.linears:
        pytest.skip("asked with the steps")
    found = said.of["single"]

    if said.stack_id == SWAPPED:  # PEFT 0.18.1 cannot
        assert found["ours"] == found["theirs"]
        assert found["states"] == ["library"]
    else:
        assert found["gradients"] < EXACT
        assert found["calls"] == [6, 0]


def test_experts_in_four_bits(said: Answers) -> None:
    found = said.of["quantised"]

    assert found["kind"] == ("Linear4bit" if said.linears else "QuantizedExperts")
    assert said.linears or found["reasons"].count("grouped_mm over runs of packed experts") == 2
    assert found["calls"] == GROUPED
    assert found["same_tensors"]
    assert found["gradients"] < SINGLE
    if not said.linears:
        assert [length for length, _ in found["in_runs"]] == [1, 2, 8]
        assert max(apart for _, apart in found["in_runs"]) < SINGLE
    assert found["merged_before_backward"] == 0  # backward has the codes of forward
