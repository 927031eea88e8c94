"""The result of a cell: one JSON file per cell, the contract between the program and everything that reads it.

The model here is the contract's only definition. The JSON Schema under ``docs/reference`` is generated from it, and a
test keeps the two equal. Bump ``SCHEMA_VERSION`` when a field changes its meaning or goes away.

Nothing of the machine stays in a result. ``python`` is a version. The log path is relative to the output directory.
Prefixes in reasons are ``<env>``, ``<home>``, ``<cache>``, ``<work>``.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.contract import checks
from harness.contract.facts import CellFacts
from harness.contract.outcomes import Outcome
from harness.contract.readings import lies_within
from harness.contract.stages import StageName
from harness.contract.tensors import COUNTS, Kind
from harness.faults import fault, fault_names
from harness.matrix.cell import Cell

SCHEMA_VERSION = 3

DEVICE_PATTERN = r"^[A-Za-z0-9][\w .()/+-]*$"
"""What a GPU is called: no formula, no tag, no link, nothing that begins another line."""

Word = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
"""A name that is our own or torch's, not a library's free text: no report has to be afraid of it."""


Count = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True, ser_json_inf_nan="strings")


class StageResult(_Model):
    """What became of one stage. ``not_run``: something it depends on failed."""

    result: Outcome | Literal["not_run"]
    seconds: float | None = None
    reason: str | None = None
    raised: bool = False
    """Whether an exception ended it, as its process told; not how that process died, nor what the host concluded."""


class Check(_Model):
    """One measured value held against its band.

    ``name`` and ``stage`` are those of ``harness.contract.checks``, or ``control:<fault>``. ``band`` is written as a
    person reads it (``<= 1e-09``, ``== 156``). ``value`` is a number wherever there is one.
    """

    name: str = Field(pattern=checks.NAME_PATTERN)
    stage: StageName
    value: float | int | str | None
    band: str
    passed: bool
    detail: str | None = None
    """What was off, by name (the first few), when the check did not pass."""

    @model_validator(mode="after")
    def _passed_only_within_its_band(self) -> Self:
        """No band holds what is no number, infinite, or outside it, whatever whoever measured it says."""
        if not is_finite(self.value) or lies_within(self.value, self.band) is False:
            self.passed = False
        return self

    @model_validator(mode="after")
    def _in_the_table(self) -> Self:
        try:
            checks.find(self.name, self.stage)
        except KeyError as error:
            raise ValueError(str(error.args[0])) from None
        return self


def is_finite(value: float | str | None) -> bool:
    """Whether a value, or the number that a text stands for, is finite; a text that is no number is not infinite."""
    if value is None or isinstance(value, int):
        return True
    try:
        return math.isfinite(float(value))
    except ValueError:
        return True


class TensorCounts(_Model):
    """On-disk tensors that a lora pair covers. attempted = applied + zero_delta + below_rounding + dropped + wrong."""

    attempted: Count = 0
    applied: Count = 0
    zero_delta: Count = 0
    below_rounding: Count = 0
    dropped: Count = 0
    wrong: Count = 0

    @model_validator(mode="after")
    def _add_up(self) -> Self:
        parts = self.applied + self.zero_delta + self.below_rounding + self.dropped + self.wrong
        if self.attempted != parts:
            raise ValueError(f"{self.attempted} tensors attempted, but {parts} accounted for")
        return self


class MergeCounts(TensorCounts):
    """The merge as measured from its bytes, beside what the engine itself claims."""

    engine_applied: int | None = None
    engine_attempted: int | None = None
    engine_seconds: float | None = None
    """Wall time of the engine alone, libraries imported or not as it is."""
    engine_peak_memory_mb: float | None = None
    """Largest resident set of the process that merged, its libraries included: MiB."""
    fallback: int | None = None
    """Tensors the engine says it merged by another path; None when it does not say."""
    by_kind: dict[str, TensorCounts] = Field(default_factory=dict)
    first_error: str | None = None
    renamed: dict[str, int] = Field(default_factory=dict)
    """Tensors of the base that the engine wrote under other names, by the rule that says which.

    Each is judged like the others.
    """
    files_rewritten: list[str] = Field(default_factory=list)
    """Files that differ from the base's and that this release reads alike."""

    @model_validator(mode="after")
    def _kinds_add_up(self) -> Self:
        for name in COUNTS if self.by_kind else ():
            total, parts = getattr(self, name), sum(getattr(counts, name) for counts in self.by_kind.values())
            if total != parts:
                raise ValueError(f"{total} tensors {name}, but {parts} by kind")
        return self


class AdapterInfo(_Model):
    """What the saved adapter is.

    ``io_layout``, ``b_packing`` and ``num_experts`` are None where nothing fused is targeted.
    """

    io_layout: Literal["standard", "swapped"] | None = None
    b_packing: Literal["rank_major", "grouped_by_expert"] | None = None
    num_experts: Annotated[int, Field(ge=1)] | None
    """Experts in each fused parameter that it targets."""
    rank: int = Field(ge=1)
    """The largest of its pairs."""
    tensors: int = 0
    peft_version: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """What decides which controls a cell must have is there as a whole or not at all."""
        fused = (self.io_layout, self.b_packing, self.num_experts)
        if None in fused and any(fact is not None for fact in fused):
            raise ValueError("io_layout, b_packing and num_experts go together: all of them, or none")
        return self


class Metrics(_Model):
    """Numbers of the functional and the tensor gate.

    KL divergences are in nats. They are means over clear positions unless the name says more.
    """

    kl_trained_merged: float | None = None
    kl_trained_merged_p99: float | None = None
    kl_trained_merged_max: float | None = None
    kl_reference_merged: float | None = None
    """KL(base + delta rounded once ‖ merged), for dtypes narrower than float32 and for QLoRA.

    It is what the functional gate judges there.
    """
    kl_trained_adapter: float | None = None
    kl_trained_base: float | None = None
    kl_merged_base: float | None = None
    max_logprob_diff: float | None = None
    top1_agreement: float | None = None
    samples_matched: int | None = None
    samples_total: int | None = None
    first_divergence: str | None = None
    """Which sample and token differ first, and the top-1 margin there.

    The margin is a log-probability, of the model that the merge is compared with.
    """
    positions_total: int | None = None
    positions_near_tie: int | None = None
    """Positions whose router top-k gap is below epsilon: there a right merge may flip an expert."""
    kl_trained_merged_near_tie: float | None = None
    tensors_exact_fraction: float | None = None
    """Share of merged elements (of tensors with a delta) equal to the correctly rounded float64 result."""
    max_ulp: float | None = None
    kl_quantization_gap_original: float | None = None
    """KL(trained on codes ‖ original base + adapter, unmerged).

    It is what quantisation costs who merges into the original.
    """
    kl_quantization_gap_dequantized: float | None = None
    """KL(trained on codes ‖ decoded base + adapter, unmerged).

    It is what kernels and casts cost, the codes being the same.
    """
    kl_dequantized_merged: float | None = None
    """KL(decoded base + adapter, unmerged ‖ merged): the error of that merge alone."""
    keys_missing: int | None = None
    keys_unexpected: int | None = None
    dtype_changes: int | None = None
    files_missing: int | None = None


class QuantizedKind(_Model):
    """Parameters of one kind in memory. ``quantized`` and ``plain`` count weights."""

    quantized: Count
    plain: Count
    stored_bytes: Count
    bf16_bytes: Count
    """What all of them would take in 16 bits."""


class QuantizationInfo(_Model):
    """What of the base was quantised while it was trained on, by kind.

    Kinds are experts, linears, other, and what else a worker tells apart.
    """

    kinds: dict[Word, QuantizedKind]


class Training(_Model):
    """What training did."""

    loss: list[float] = Field(default_factory=list)
    """Loss on one fixed batch, before the first and after the last step."""
    steps: int | None = None
    grad_norm: dict[str, float] = Field(default_factory=dict)
    """Per targeted kind, the largest over the steps."""
    tokens_per_expert_min: dict[str, int] = Field(default_factory=dict)
    """``{"training": n, "evaluation": m}``: tokens seen by the expert that saw the fewest."""
    attached: dict[str, str] = Field(default_factory=dict)
    """Per kind, ``found/expected`` modules or parameters that got a LoRA."""
    lora_dtypes: dict[Word, int] = Field(default_factory=dict)
    """LoRA tensors by the dtype that they were trained in, ``{"bfloat16": 24}``; empty where nobody looked."""


class Funnel(_Model):
    """Targets of one kind that are left after each step, None where it was not taken.

    A target is a module, or a fused parameter, of the model in memory. The steps are those of
    ``harness.contract.funnel``.
    """

    asked: Count = 0
    attached: Count | None = None
    gradient: Count | None = None
    moved: Count | None = None
    saved: Count | None = None
    reloaded: Count | None = None
    merged: Count | None = None

    @property
    def whole(self) -> bool:
        """Whether each step that was taken has all that was asked for, and all that was attached."""
        taken: list[int] = [count for count in self.model_dump().values() if count is not None]
        return min(taken[1:], default=0) >= max(taken)


class PathDifference(_Model):
    """How far one forward is from another; None is what is no number."""

    logits: float | None = None
    """Largest difference, in standard deviations of the logits."""
    gradients: float | None = None
    """Largest difference of a LoRA tensor's gradient, relative to its norm."""


class ControlResult(_Model):
    """A deliberately broken merge in the same cell: the gates must reject it."""

    name: str
    rejected: bool
    by: list[str] = Field(default_factory=list)
    value: float | None = None
    values: dict[str, float | int | str | None] = Field(default_factory=dict)
    """What each of those checks measured of it."""

    @model_validator(mode="after")
    def _rejected_by_all_that_must(self) -> Self:
        """A name that no fault has is no control of any cell, so nothing follows from it."""
        known = self.name in fault_names()
        overlooked = fault(self.name).checks_of("compare") - set(self.by) if known else frozenset[str]()
        if self.rejected and overlooked:
            raise ValueError(f"{self.name} is said to be rejected, but let through by {', '.join(sorted(overlooked))}")
        return self


class LostAttempt(_Model):
    """The cell was on its way there when it was lost with the place. What it had come to is nobody's finding."""

    node: Word | None
    """Which node of a cluster, as ``CellResult.node``; None where that is not known."""
    how: Literal["node", "process", "memory", "environment"]
    """The node went, the process on it went, the cluster ended it for want of memory, or its environment could not be
    made there."""


class CellResult(_Model):
    """Everything known about one cell."""

    schema_version: Literal[3] = 3
    cell: Cell
    cell_id: str
    outcome: Outcome
    stage: StageName | None = None
    """The stage that decided the outcome; None when the cell passed."""
    reason: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    lock_sha256: str | None = None
    python: str | None = None
    platform: str | None = None
    device: str | None = Field(default=None, pattern=DEVICE_PATTERN)
    threads: int | None = None
    seed: int = 0
    import_first: Word | None = None
    """Which of the libraries had to be imported first; None where the usual order works. The import stage says why."""
    base_sha256: str | None = None
    base_logprobs: list[float | None] = Field(default_factory=list)
    """What the base model says, which stacks must agree on: log-probabilities of tokens of the held-out prompts, nats.

    None where routing is a near tie.
    """
    facts: CellFacts | None = None
    """They decide which checks a pass needs. None where the LoRA was never attached."""
    adapter: AdapterInfo | None = None
    merge: MergeCounts | None = None
    stages: dict[StageName, StageResult] = Field(default_factory=dict)
    checks: list[Check] = Field(default_factory=list)
    metrics: Metrics = Field(default_factory=Metrics)
    training: Training | None = None
    funnel: dict[Kind, Funnel] = Field(default_factory=dict)
    """Of each kind, from what the recipe asks for to what was merged."""
    forward_paths: dict[str, PathDifference] = Field(default_factory=dict)
    """Experts forwards of the trained model, each held against ``eager``."""
    not_possible: dict[Word, str] = Field(default_factory=dict)
    """Optional features that were tried and that this release does not offer, or ours does not know there, and why.

    They are nobody's failure.
    """
    quantization: QuantizationInfo | None = None
    shims: list[Word] = Field(default_factory=list)
    """What was replaced in a library while the adapter was loaded again, because the recipe says so.

    Such a reload shows that it can work, not that it does.
    """
    controls: list[ControlResult] = Field(default_factory=list)
    timings: dict[str, float] = Field(default_factory=dict)
    peak_rss_mb: float | None = None
    peak_vram_mb: float | None = None
    node: Word | None = None
    """Which node of a cluster it ran on, a number that tells nodes of a run apart; None: the machine of the run."""
    lost: list[LostAttempt] = Field(default_factory=list)
    """Attempts before this one, in order."""
    log: str | None = None
    """The log's path, relative to the output directory."""
    started: str | None = None
    """ISO 8601, UTC."""
    reused: str | None = None
    """When a later run took this result over instead of running the cell (ISO 8601, UTC); None where it ran."""
    last_passed: str | None = None
    """When an earlier run into the same directory had this cell pass (ISO 8601, UTC); None where none is known of."""

    @model_validator(mode="after")
    def _named_after_its_cell(self) -> Self:
        if self.cell_id != self.cell.id:
            raise ValueError(f"cell_id {self.cell_id!r} is not the id of its cell, {self.cell.id!r}")
        return self


HOST_FIELDS = frozenset(
    {
        "schema_version", "cell", "cell_id", "outcome", "stage", "reason", "last_passed", "lock_sha256", "log", "lost",
        "node", "seed", "started", "reused",
    }
)  # fmt: skip
"""What the host alone says. A worker observes the rest."""

WORKER_FIELDS = frozenset(CellResult.model_fields) - HOST_FIELDS
"""What a worker's observation may hold."""
