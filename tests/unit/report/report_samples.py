"""Results built by hand, one of each fate a cell can have, and the rows a report is made of."""

from __future__ import annotations

from harness.contract.outcomes import Outcome
from harness.contract.stages import STAGES, StageName
from harness.matrix.cell import Cell, Stack
from harness.report.table import Row, not_run
from harness.result import (
    AdapterInfo,
    CellResult,
    Check,
    ControlResult,
    MergeCounts,
    Metrics,
    QuantizationInfo,
    QuantizedKind,
    StageResult,
    TensorCounts,
    Training,
)

STACK = Stack(transformers="5.5.0", peft="0.19.1", trl="0.25.1", pins={"torch": "2.13.0"})
NEWEST = Stack(transformers="5.23.0", peft="0.21.2", trl="1.16.0")
OLDEST = Stack(transformers="4.57.6", peft="0.19.1", trl="0.25.1")
BROKEN_RELOAD = Stack(transformers="5.6.2", peft="0.19.1", trl="1.4.0")

TYPE_ERROR = "TypeError: WeightConverter.__init__() got an unexpected keyword argument 'distributed_operation'"
UNRECOGNISED = "ValueError: Unrecognized model identifier: qwen3_5_moe. Should contain one of aimv2, albert, …"
LINK = "https://example.org/peft/issues/1"


def _stages(failed: StageName | None, outcome: Outcome, reason: str | None) -> dict[StageName, StageResult]:
    stages: dict[StageName, StageResult] = {}
    for index, name in enumerate(STAGES):
        if name == failed:
            stages[name] = StageResult(result=outcome, seconds=1.25, reason=reason)
        elif failed == "load" and index > STAGES.index("load"):
            stages[name] = StageResult(result="not_run")
        else:
            stages[name] = StageResult(result="pass", seconds=0.5)
    return stages


def measured(
    cell: Cell, *, outcome: Outcome = "pass", stage: StageName | None = None, reason: str | None = None
) -> CellResult:
    """A cell that ran to its end: 156 tensors applied, the KL of a right merge, every control rejected."""
    return CellResult(
        cell=cell,
        cell_id=cell.id,
        outcome=outcome,
        stage=stage,
        reason=reason,
        versions={"torch": "2.13.0+cpu", "transformers": cell.stack.transformers, "peft": cell.stack.peft},
        lock_sha256="0f" * 32,
        python="3.11.9",
        platform="linux-x86_64",
        device="cpu",
        threads=1,
        base_sha256="ab" * 32,
        adapter=AdapterInfo(
            io_layout="standard",
            b_packing="rank_major",
            num_experts=8,
            rank=3,
            tensors=48,
            peft_version=cell.stack.peft,
        ),
        merge=MergeCounts(
            attempted=156,
            applied=156,
            engine_applied=156,
            fallback=0,
            by_kind={
                "attention": TensorCounts(attempted=12, applied=12),
                "expert": TensorCounts(attempted=144, applied=144),
            },
        ),
        stages=_stages(stage, outcome, reason),
        checks=[
            Check(name="attached", stage="attach", value=156, band="== 156", passed=True),
            Check(name="signal", stage="compare", value=0.234567, band=">= 0.1", passed=True),
            Check(name="kl", stage="compare", value=1.2e-13, band="<= 1e-09", passed=True),
            Check(name="applied", stage="compare", value=156, band="== 156", passed=True),
            Check(name="control:base-copied", stage="controls", value=0.2345, band="rejected", passed=True),
        ],
        metrics=Metrics(
            kl_trained_merged=1.2e-13,
            kl_trained_base=0.234567,
            kl_merged_base=0.2345,
            max_logprob_diff=3.1e-6,
            top1_agreement=1.0,
            samples_matched=3,
            samples_total=3,
            tensors_exact_fraction=1.0,
        ),
        training=Training(
            loss=[5.41, 4.02],
            steps=4,
            grad_norm={"attention": 0.31, "expert": 0.12},
            tokens_per_expert_min={"training": 7, "evaluation": 3},
            attached={"attention": "12/12", "expert": "144/144"},
        ),
        controls=[ControlResult(name="base-copied", rejected=True, by=["applied", "kl", "logprob"], value=0.2345)],
        timings={"train": 1.2, "merge": 0.4, "total": 21.7},
        peak_rss_mb=571.3,
        log=f"cells/{cell.family}/{cell.file_stem}.log",
        started="2026-11-20T12:00:00Z",
    )


def stopped(cell: Cell, outcome: Outcome, stage: StageName, reason: str) -> CellResult:
    """A cell that measured nothing, because it ended in ``stage``."""
    return CellResult(
        cell=cell,
        cell_id=cell.id,
        outcome=outcome,
        stage=stage,
        reason=reason,
        stages={stage: StageResult(result=outcome, seconds=2.0, reason=reason)},
        log=f"cells/{cell.family}/{cell.file_stem}.log",
        started="2026-11-20T12:00:01Z",
    )


def rejected(cell: Cell) -> CellResult:
    result = measured(cell, outcome="fail", stage="compare", reason="2 of 156 tensors are wrong, 6 were dropped")
    assert result.merge is not None
    result.merge = MergeCounts(
        attempted=156,
        applied=140,
        zero_delta=5,
        below_rounding=3,
        dropped=6,
        wrong=2,
        engine_applied=156,
        by_kind={
            "attention": TensorCounts(attempted=12, applied=12),
            "expert": TensorCounts(attempted=144, applied=128, zero_delta=5, below_rounding=3, dropped=6, wrong=2),
        },
        first_error="model.layers.1.mlp.experts.3.up_proj.weight",
    )
    result.metrics = Metrics(
        kl_trained_merged=0.55, kl_trained_base=0.63, kl_merged_base=0.081, samples_matched=1, samples_total=3
    )
    result.checks = [
        Check(name="kl", stage="compare", value=0.55, band="<= 1e-09", passed=False),
        Check(
            name="applied",
            stage="compare",
            value=140,
            band="== 148",
            passed=False,
            detail="layers.1.mlp.experts.3.up_proj",
        ),
    ]
    return result


def _noop(cell: Cell) -> CellResult:
    result = measured(cell, outcome="noop", stage="merge", reason="every tensor with a delta was dropped")
    result.merge = MergeCounts(attempted=156, applied=0, dropped=156, engine_applied=156)
    result.metrics = Metrics(
        kl_trained_merged=0.23, kl_trained_base=0.23, kl_merged_base=0.0, samples_matched=0, samples_total=3
    )
    return result


def _blind(cell: Cell) -> CellResult:
    result = measured(cell, outcome="blind", stage="controls", reason="the control base-copied got through")
    result.controls = [ControlResult(name="base-copied", rejected=False, by=[], value=3e-4)]
    result.metrics = Metrics(
        kl_trained_merged=1.1e-13, kl_trained_base=3e-4, kl_merged_base=3e-4, samples_matched=3, samples_total=3
    )
    return result


def on_codes(cell: Cell) -> CellResult:
    """A QLoRA cell that passes: the gap is large, the merge error is not."""
    result = measured(cell)
    result.metrics.kl_reference_merged = 7e-13
    result.metrics.kl_quantization_gap_original = 0.24
    result.metrics.kl_quantization_gap_dequantized = 1.1e-12
    result.metrics.kl_dequantized_merged = 7.6e-13
    kinds = {
        "experts": QuantizedKind(quantized=1179648, plain=0, stored_bytes=613056, bf16_bytes=2359296),
        "linears": QuantizedKind(quantized=319488, plain=13696, stored_bytes=193408, bf16_bytes=666368),
        "adapters": QuantizedKind(quantized=0, plain=4096, stored_bytes=16384, bf16_bytes=8192),
    }
    result.quantization = QuantizationInfo(kinds=kinds)
    assert result.training is not None
    result.training.lora_dtypes = {"float32": 2, "bfloat16": 22}
    result.shims = ["weight-converter-arguments"]
    return result


def cell(family: str, recipe: str = "lora", stack: Stack = STACK, **options: object) -> Cell:
    """A cell of the samples' first stack, unless another is given."""
    return Cell.model_validate({"family": family, "recipe": recipe, "stack": stack, **options})


def sample_rows() -> list[Row]:
    """One row of each fate."""
    known = {"expectation_reason": "peft 0.19.1 passes an argument that 5.6.2 dropped", "expectation_link": LINK}
    return [
        Row(result=measured(cell("qwen3_moe")), status="ok"),
        Row(result=measured(cell("qwen3_moe", "lora-experts", dtype="bf16", geometry="square-down")), status="ok"),
        Row(result=measured(cell("glm4_moe", stack=NEWEST)), status="ok"),
        Row(
            result=measured(
                cell("qwen3_moe", stack=BROKEN_RELOAD), outcome="error", stage="reload-adapter", reason=TYPE_ERROR
            ),
            status="known-failure",
            sentence="Fails as declared: the merge is right, the adapter cannot be loaded again.",
            **known,
        ),
        Row(result=stopped(cell("qwen3_5_moe", stack=OLDEST), "unsupported", "load", UNRECOGNISED), status="ok"),
        Row(
            result=stopped(cell("qwen3_5_moe", "lora-experts", stack=OLDEST), "unsupported", "load", UNRECOGNISED),
            status="ok",
        ),
        Row(result=rejected(cell("qwen3_moe", seed=3)), status="new"),
        Row(result=_noop(cell("glm4_moe")), status="new"),
        Row(result=_blind(cell("deepseek_v3")), status="new"),
        Row(
            result=stopped(cell("deepseek_v3", stack=NEWEST), "crash", "train", "killed by SIGSEGV"),
            status="regression",
        ),
        Row(result=stopped(cell("qwen3_5_moe"), "timeout", "train", "no end after 300 s"), status="new"),
        Row(
            result=stopped(
                cell("qwen3_moe", "qlora4", stack=OLDEST),
                "unresolvable",
                "resolve",
                "No solution found:\n  peft>=0.18 needs …",
            ),
            status="known-failure",
            expectation_reason="no common version",
        ),
        Row(result=measured(cell("glm4_moe", stack=BROKEN_RELOAD)), status="unexpected-pass", **known),
        Row(result=measured(cell("deepseek_v3", stack=BROKEN_RELOAD)), status="flaky"),
        Row(result=stopped(cell("qwen3_moe", "qlora8"), "skipped", "load", "needs a GPU"), status="ok"),
        not_run(cell("deepseek_v3", stack=OLDEST), "interrupted before it started"),
        not_run(cell("glm4_moe", stack=OLDEST), "interrupted before it started"),
    ]
