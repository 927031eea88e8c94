"""The table of checks: what is measured in which stage, which gate it belongs to, when a pass needs it.

Adding a check is a row here and its measurement in ``harness/worker/stages``. A worker fails at once when it records a
check that the table does not have for that stage. A pass lacks evidence as long as a check that applies to its cell is
not there. So it is with a check's control: the same judgement of the same measurement, altered, which it must reject.
Checks of a merged directory have theirs in ``harness/faults`` too, where the directory itself is broken.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from harness.contract.facts import CellFacts
from harness.contract.outcomes import Outcome
from harness.contract.stages import StageName

Gate = Literal["training", "adapter", "quantization", "tensor", "functional", "both"]
"""``tensor`` decides whether a merge is correct, ``functional`` whether it works.

A control is part of ``both``. The others judge what comes before the merge.
"""

CONTROL = "control:"
"""What the name of a control begins with. The check's name follows; in stage ``controls`` it is the fault's."""


def _always(_facts: CellFacts) -> bool:
    return True


def _quantized(facts: CellFacts) -> bool:
    return facts.quantized


def _plain(facts: CellFacts) -> bool:
    return not facts.quantized


def _defined(facts: CellFacts) -> bool:
    return facts.defined


def _resumed(facts: CellFacts) -> bool:
    return facts.resumed


def _per_expert(facts: CellFacts) -> bool:
    return facts.per_expert


def _has_paths(facts: CellFacts) -> bool:
    """Whether several experts forwards can be compared.

    transformers has several where experts are fused. We have another where experts have a LoRA, of one adapter.
    """
    return facts.fused_experts or ("expert" in facts.kinds and facts.adapters_on_experts == 1)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the table.

    Attributes:
        name: its name, which several stages may share.
        stage: where it is measured.
        gate: what it is part of.
        passes_when: for the reader of a table.
        control: how the measurement is altered that the check must reject; None where only faults guard it.
        failing: what a stage ends in when only checks like this one fail.
        applies: whether a pass of a cell with these facts needs it.
        measured_on: the stage whose model it is measured on; where that did not pass it cannot be there.
        counts_all: whether its value is ``n/n``: all of what there is, and at least one.
        optional: what it compares, where all of it may be not possible in a release. It cannot be there then, and the
            result says why of some of it (``not_possible``).
        metrics: the metrics that hold its number too where it passed; the first that is there counts.
    """

    name: str
    stage: StageName
    gate: Gate
    passes_when: str
    control: str | None = None
    failing: Outcome = "fail"
    applies: Callable[[CellFacts], bool] = _always
    measured_on: StageName | None = None
    counts_all: bool = False
    optional: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


TABLE: tuple[Check, ...] = (
    Check(
        name="quantized",
        stage="load",
        gate="quantization",
        passes_when="QLoRA: every weight of the routed experts is quantised",
        control="one weight is counted as not quantised",
        applies=_quantized,
        counts_all=True,
    ),
    Check(
        name="census",
        stage="load",
        gate="quantization",
        passes_when="QLoRA: exactly the Linears and the routed experts are quantised, in the code that was asked for",
        control="one quantised tensor is left out",
        applies=_quantized,
    ),
    Check(
        name="coding",
        stage="load",
        gate="quantization",
        passes_when="QLoRA: every quantised weight lies as near to the original's as the nearest code, but for the "
        "rounding of its scale, and all of a tensor together are as large",
        control="one tensor's decoded values are a tenth larger",
        applies=_quantized,
    ),
    Check(
        name="definition",
        stage="load",
        gate="training",
        passes_when="the base says what its files mean by the architecture's definition, computed in numpy and float64 "
        "(QLoRA: what its codes mean)",
        control="one logit is moved, by three times the band",
        applies=_defined,
    ),
    Check(
        name="attached",
        stage="attach",
        gate="training",
        passes_when="exactly what the recipe targets got a LoRA, of the rank and scale that it asks for and in "
        "float32, counted from the checkpoint's own description",
        control="one target is left out",
        counts_all=True,
    ),
    Check(
        name="unchanged",
        stage="train",
        gate="training",
        passes_when="before the first step the model with its LoRA says what the base says, or the base with the "
        "adapter that is not trained",
        control="one logit is moved, by three times the band",
    ),
    Check(
        name="gradients",
        stage="train",
        gate="training",
        passes_when="every LoRA tensor of every targeted kind had a non-zero gradient in some step",
        control="one tensor's gradient is zero",
    ),
    Check(
        name="steps",
        stage="train",
        gate="training",
        passes_when="as many optimizer steps were taken as the recipe asks for, of as many tokens, those have a label "
        "that are to be trained on (all, or all of an answer), and every sequence was seen equally often",
        control="one label is masked",
    ),
    Check(
        name="update",
        stage="train",
        gate="training",
        passes_when="in every step every LoRA weight moved as AdamW's formula says, in float64, from its own "
        "gradients; where it has fewer digits than float32, nearly all are exactly what it is rounded to",
        control="in the first step the weights have moved a tenth further",
    ),
    Check(
        name="objective",
        stage="train",
        gate="training",
        passes_when="the loss of the first and of the last step (of every step where batches are not plain) is the "
        "next-token cross entropy of its sequences, each alone, over predictions or labels, with the load-balancing "
        "loss of the routers where the trainer adds it",
        control="the loss is that of the token after next",
    ),
    Check(
        name="gradient",
        stage="train",
        gate="training",
        passes_when="in the first and in the last step (in every step where batches are not plain) the gradient is "
        "that of the step's sequences, each alone, in one piece, without checkpointing and clipped as asked, and so is "
        "the norm that the trainer tells; layers were computed once, or twice where checkpointing is asked for",
        control="one tensor's gradient is larger by three times the band",
    ),
    Check(
        name="resumed",
        stage="train",
        gate="training",
        passes_when="a new trainer that goes on from a saved checkpoint arrives at the same adapter, bit for bit "
        "(recipes that resume)",
        control="it does not go on, and has what the checkpoint has",
        applies=_resumed,
    ),
    Check(
        name="loss",
        stage="train",
        gate="training",
        passes_when="the loss on one fixed batch fell",
        control="the losses change places",
    ),
    Check(
        name="coverage",
        stage="train",
        gate="training",
        passes_when="every expert of every layer saw tokens in training and in evaluation",
        control="one expert saw no token",
    ),
    Check(
        name="precision",
        stage="train",
        gate="training",
        passes_when="in every step the experts computed in the dtype that the recipe asks for, float32 or autocast's",
        control="one call is in another dtype",
    ),
    Check(
        name="modes",
        stage="train",
        gate="training",
        passes_when="the trained model says the same in training mode and in evaluation mode, dropout apart, which is "
        "awake in training where it is asked for (not of QLoRA, whose models are compared in training mode alone)",
        control="one logit is moved, by three times the band",
        applies=_plain,
    ),
    Check(
        name="generation",
        stage="generate",
        gate="training",
        passes_when="every greedy token is the likeliest by a forward without a cache, or short of it by no more than "
        "`logprob_max`, and a sample ends at a stop token or at the length that was asked for",
        control="the last token of a sample is the least likely one",
    ),
    Check(
        name="cache",
        stage="generate",
        gate="training",
        passes_when="the logits that greedy tokens were taken from, computed one by one with a cache, are those of a "
        "forward over the whole sequence without one, near ties of routers apart",
        control="one logit is moved, by three times the band",
    ),
    Check(
        name="forward_paths",
        stage="forward-paths",
        gate="training",
        passes_when="every experts forward of the trained model that the stack offers was taken, and gives the same "
        "logits and the same LoRA gradients; the worst is named",
        control="one tensor's gradient is a thousandth larger",
        applies=_has_paths,
        optional=("batched_mm", "grouped_mm", "grouped_forward"),
    ),
    Check(
        name="attached",
        stage="save",
        gate="adapter",
        passes_when="every LoRA weight in memory is in the saved adapter, bit for bit, and nothing else; its "
        "configuration names the base, and an adapter that was not trained is as it was",
        control="one saved number is another",
        counts_all=True,
    ),
    Check(
        name="definition",
        stage="save",
        gate="training",
        passes_when="the trained model says what the base and the saved adapter mean by definition, the LoRA computed "
        "in float32",
        control="one logit is moved, by three times the band",
        applies=_defined,
    ),
    Check(
        name="derivative",
        stage="save",
        gate="training",
        passes_when="autograd's gradient of every LoRA tensor is the slope of the loss by definition, by central "
        "differences in float64",
        control="the steepest tensor's gradient is negated",
        applies=_defined,
    ),
    Check(
        name="attached",
        stage="reload-adapter",
        gate="adapter",
        passes_when="every weight of the saved adapter is in the model that has loaded it again, number by number, and "
        "nothing else",
        control="one loaded number is another",
        counts_all=True,
    ),
    Check(
        name="definition",
        stage="reload-adapter",
        gate="adapter",
        passes_when="so does the base with the adapter loaded again",
        control="one logit is moved, by three times the band",
        applies=_defined,
    ),
    Check(
        name="adapter_reload",
        stage="reload-adapter",
        gate="adapter",
        passes_when="KL(trained ‖ base + reloaded adapter) is within its band",
        control="the logits of the likeliest tokens are 0.1 lower",
        metrics=("kl_trained_adapter",),
    ),
    Check(
        name="per_expert",
        stage="reload-adapter",
        gate="adapter",
        passes_when="so is that of the adapter with a pair for every expert's Linear, as transformers 4 has it, and "
        "each of its tensors fits something (recipes that ask for it)",
        control="the logits of the likeliest tokens are 0.1 lower",
        applies=_per_expert,
    ),
    Check(
        name="signal",
        stage="compare",
        gate="training",
        passes_when="KL(trained ‖ base) is large enough to see anything (for QLoRA both are quantised)",
        control="the trained model is held against itself",
        failing="blind",
        measured_on="reload-merged",
        metrics=("kl_trained_base",),
    ),
    Check(
        name="kl",
        stage="compare",
        gate="functional",
        passes_when="KL(trained ‖ merged) of the reloaded merge is within its band (for bf16 and for QLoRA: "
        "KL(reference ‖ merged), the reference being the original base + adapter, unmerged, rounded once)",
        measured_on="reload-merged",
        metrics=("kl_reference_merged", "kl_trained_merged"),
    ),
    Check(
        name="logprob",
        stage="compare",
        gate="functional",
        passes_when="no log-probability of the reloaded merge has moved by more than its band from what `kl` compares "
        "with",
        measured_on="reload-merged",
        metrics=("max_logprob_diff",),
    ),
    Check(
        name="definition",
        stage="compare",
        gate="functional",
        passes_when="the reloaded merge says what a right merge means by definition, within `logprob_max`",
        control="one logit is moved, by three times the band",
        applies=_defined,
        measured_on="reload-merged",
    ),
    Check(
        name="samples",
        stage="compare",
        gate="functional",
        passes_when="greedy samples of the reloaded merge are those of what `kl` compares with, ties apart",
        control="the surest token of the samples is another",
        measured_on="generate-merged",
    ),
    Check(
        name="applied",
        stage="compare",
        gate="tensor",
        passes_when="every attempted tensor is rightly merged, there is at least one, and every saved pair covers "
        "something on disk",
        counts_all=True,
    ),
    Check(
        name="claims",
        stage="compare",
        gate="tensor",
        passes_when="what the engine says is so: how many tensors it set out to change and has changed, and in its "
        "manifest of which adapter and base, and of each tensor what became of it and how large its delta is",
        control="it claims one tensor fewer",
    ),
    Check(
        name="exact",
        stage="compare",
        gate="tensor",
        passes_when="enough elements (`exact_min`, or all but 16) equal the correctly rounded float64 result, and none "
        "is further away than `ulp_max`",
        metrics=("tensors_exact_fraction",),
    ),
    Check(
        name="coverage",
        stage="compare",
        gate="training",
        passes_when="no tensor, and no expert inside a fused tensor, was left without a delta",
        control="one expert, or one tensor, has no delta",
    ),
    Check(
        name="untouched_bytes",
        stage="compare",
        gate="tensor",
        passes_when="no tensor without a delta changed, of those that are there",
    ),
    Check(
        name="keys",
        stage="compare",
        gate="tensor",
        passes_when="the tensor names are the base's, and the index says where they are",
        metrics=("keys_missing",),
    ),
    Check(
        name="dtypes",
        stage="compare",
        gate="tensor",
        passes_when="no tensor changed its dtype",
        metrics=("dtype_changes",),
    ),
    Check(
        name="files",
        stage="compare",
        gate="tensor",
        passes_when="no file of the base is missing or changed, none of weights was added, and base and adapter are "
        "as they were before the engine had them; shards say that they are torch's",
        metrics=("files_missing",),
    ),
    Check(
        name="kl_dequantized",
        stage="compare",
        gate="functional",
        passes_when="QLoRA: the merge onto the dequantised base says what that base with the adapter says",
        control="the logits of the likeliest tokens are 0.1 lower",
        applies=_quantized,
        measured_on="reload-merged",
        metrics=("kl_dequantized_merged",),
    ),
    Check(
        name="applied_dequantized",
        stage="compare",
        gate="tensor",
        passes_when="QLoRA: the merge onto the dequantised base has every attempted tensor",
        control="the base stands in the merge's place",
        applies=_quantized,
        counts_all=True,
    ),
    Check(
        name="untouched_dequantized",
        stage="compare",
        gate="tensor",
        passes_when="QLoRA: nothing but deltas is in the merge onto the dequantised base: bytes, names, dtypes, files",
        control="one tensor is counted as changed",
        applies=_quantized,
    ),
)

NAME_PATTERN = (
    f"^(({CONTROL})?("
    + "|".join(dict.fromkeys(re.escape(check.name) for check in TABLE))
    + f")|{CONTROL}[a-z0-9]+(-[a-z0-9]+)*)$"
)
"""What the name of a check in a result matches."""


@lru_cache(maxsize=4096)
def find(name: str, stage: StageName) -> Check:
    """Return the row of a check, or of a control.

    Raises:
        KeyError: the table has no such check in that stage.
    """
    if name.startswith(CONTROL) and stage == "controls":
        return Check(
            name=name,
            stage=stage,
            gate="both",
            passes_when="every check that the fault names rejects that broken merge",
            failing="blind",
        )
    for check in TABLE:
        if (check.name, check.stage) == (name.removeprefix(CONTROL), stage):
            if name == check.name:
                return check
            if check.control is not None:
                return control_of(check)
    raise KeyError(f"there is no check {name!r} in stage {stage!r}: harness/contract/checks.py has the table")


def control_of(check: Check) -> Check:
    """Return the row of a check's own control, which is measured where and when the check is."""
    return replace(
        check,
        name=f"{CONTROL}{check.name}",
        passes_when=f"it rejects this: {check.control}",
        control=None,
        failing="blind",
        counts_all=False,
        metrics=(),
    )


@lru_cache(maxsize=1024)
def needed(facts: CellFacts) -> tuple[Check, ...]:
    """Return the checks that a pass of a cell with these facts must show, and their own controls.

    Controls that break a merge come on top (``harness.faults``).
    """
    found: list[Check] = []
    for check in TABLE:
        if check.applies(facts):
            found += [check] if check.control is None else [check, control_of(check)]
    return tuple(found)
